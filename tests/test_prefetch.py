"""Prefetched batches: those that would have been drawn, at most so many ahead, and no thread left behind."""

import threading
import time

import pytest

from neurorecon.training.prefetch import Prefetch


def prefetching():
    return [t for t in threading.enumerate() if t.name == "prefetch"]


def test_batches_come_in_the_order_of_the_steps_and_end():
    drawn = []

    def draw(step):
        drawn.append((step, threading.current_thread().name))
        return step**2

    with Prefetch(draw, range(5, 25), depth=3) as prefetch:
        assert list(prefetch) == [(k, k**2) for k in range(5, 25)]
        assert list(prefetch) == []  # the end stays the end
    assert [k for k, _ in drawn] == list(range(5, 25)) and {name for _, name in drawn} == {"prefetch"}
    assert prefetch.waited >= 0 and not prefetching()
    with Prefetch(draw, []) as prefetch:
        assert list(prefetch) == []


@pytest.mark.parametrize("depth", [1, 2])
def test_no_more_than_the_depth_are_drawn_ahead(depth):
    drawn = []
    with Prefetch(lambda step: drawn.append(step) or step, range(100), depth=depth) as prefetch:
        for _ in range(200):
            time.sleep(0.005)
            if len(drawn) == depth:
                break
        time.sleep(0.05)  # it would go on now, if it did not wait
        assert len(drawn) == depth
        next(prefetch)
        next(prefetch)
        for _ in range(200):
            time.sleep(0.005)
            if len(drawn) == depth + 2:
                break
        time.sleep(0.05)
        assert len(drawn) == depth + 2
    assert not prefetching() and len(drawn) <= depth + 3  # leaving the block ended it
    with pytest.raises(ValueError, match="depth"):
        Prefetch(str, [], depth=0)


def test_the_next_batch_is_drawn_while_the_caller_works():
    begun, go_on = threading.Event(), threading.Event()

    def draw(step):
        if step == 1:
            begun.set()
            assert go_on.wait(30)
        return step

    with Prefetch(draw, range(3)) as prefetch:
        assert next(prefetch) == (0, 0)
        assert begun.wait(30)  # the caller still has the first one
        threading.Timer(0.2, go_on.set).start()
        assert next(prefetch) == (1, 1)
        assert prefetch.waited > 0.1


def test_an_error_is_raised_where_the_batch_is_asked_for():
    def draw(step):
        if step == 2:
            raise OSError("the disk is gone")
        return step

    with pytest.raises(OSError, match="the disk is gone"), Prefetch(draw, range(9)) as prefetch:
        assert [next(prefetch)[0], next(prefetch)[0]] == [0, 1]
        next(prefetch)
    assert not prefetching()


def test_the_callers_error_ends_the_thread():
    with pytest.raises(KeyError), Prefetch(lambda step: step, range(1000)) as prefetch:
        next(prefetch)
        raise KeyError("loss")
    assert not prefetching()
