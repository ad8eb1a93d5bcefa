"""How much goes through the encoders at once: from a device's memory, and without a trace in the movies."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.tree_util import Partial

from neurorecon.errors import NeuroreconError
from neurorecon.reconstruction import chunking, default_recipe, published_recipe, reconstruct, reconstruct_clips
from neurorecon.reconstruction.chunking import GIB, AtOnce, evened, fitted, memory_limit
from neurorecon.reconstruction.losses import poisson
from tests.toy_encoders import toy, toy_clips


@dataclasses.dataclass
class Device:
    """Of so many bytes."""

    limit: int | None
    used: int = 0

    def memory_stats(self):
        return None if self.limit is None else {"bytes_limit": self.limit, "bytes_in_use": self.used}


def descend(parallel=True, **options):
    """Two encoders on three clips of 60 frames: 3 windows or more of each."""
    recipe = published_recipe()
    given = {"recipe": recipe, "key": jax.random.key(0), "num_steps": 2, "parallel": parallel, **options}
    return reconstruct_clips([toy("dwiseneuro", seed) for seed in (0, 1)], *toy_clips(3), **given)


@pytest.fixture
def planned(monkeypatch):
    """Settings that a descent was planned with, for a device of so many bytes; nothing is descended."""

    class Planned(Exception):
        pass

    def of(device, **options):
        found = []

        def chosen(settings, *args, **rest):
            found.append(whole(settings, *args, **rest | {"device": device}))
            raise Planned

        whole = chunking.chosen
        with monkeypatch.context() as patch:
            patch.setattr(chunking, "chosen", chosen)
            with pytest.raises(Planned):
                descend(**{"window_chunk": 1000} | options)
        (settings,) = found
        return AtOnce(settings.window_chunk, settings.models_at_once, settings.clips_at_once)

    return of


def test_more_memory_more_at_once(planned, monkeypatch):
    monkeypatch.setattr(chunking, "window_bytes", lambda *args: 1 << 24)  # of windows far larger than all else
    room = {n: planned(Device(int((n * (1 << 24) + (1 << 22)) / chunking.SHARE))) for n in (1, 2, 3, 7, 12, 100)}
    assert room[1] == (1, 1, 1)
    assert room[2] == (2, 1, 1)  # of three windows: two and one
    assert room[3] == (3, 1, 1)
    assert room[7] == (3, 2, 1)
    assert room[12] == (3, 2, 2)
    assert room[100] == (3, 2, 3)
    # What others use is not there; a user's bound counts as the device's own; and nobody has to say anything.
    assert planned(Device(100 << 24, used=int(100 * chunking.SHARE - 3) << 24)) == (3, 1, 1)
    assert planned(Device(100 << 24), memory_gib=8 / 64) == planned(Device(None), memory_gib=8 / 64) == (3, 2, 1)
    assert planned(Device(None))[0] == 1000
    assert planned(Device(100 << 24), window_chunk=2) == (2, 2, 3)  # no more than asked for
    assert planned(Device(100 << 24), parallel=False) == (3, 1, 1)


def test_rounds_are_even():
    assert [evened(35, most) for most in (1, 2, 12, 18, 20, 34, 35, 99)] == [1, 2, 12, 18, 18, 18, 35, 35]
    assert fitted(AtOnce(35, 7, 8), 80) == (35, 2, 1) and fitted(AtOnce(35, 7, 8), 10**6) == (35, 7, 8)
    assert memory_limit(Device(4 * GIB), 2.0) == memory_limit(Device(None), 2.0) == 2 * GIB
    assert memory_limit(Device(4 * GIB), 8.0) == 4 * GIB and memory_limit(Device(None)) is None


def test_what_the_compiler_says_of_a_window(planned):
    """Needs grow with what a window holds, and the most that fits is between none and all."""
    found = [planned(Device(int(mib * (1 << 20)))) for mib in (0.5, 2, 100)]
    assert found[0] < found[1] and found[-1] == (3, 2, 3)


@pytest.mark.parametrize("at_once", [(1, 1, 1), (2, 1, 2), (3, 2, 2), (3, 2, 3)])
def test_the_same_movies(at_once, monkeypatch, all_at_once):
    fits = AtOnce(*at_once)
    changed = {"window_chunk": fits.windows, "models_at_once": fits.models, "clips_at_once": fits.clips}
    monkeypatch.setattr(chunking, "chosen", lambda settings, *args, **rest: dataclasses.replace(settings, **changed))
    found = descend()
    np.testing.assert_allclose(found.movies, all_at_once.movies, atol=2e-3)
    np.testing.assert_allclose(found.trace["window_loss"], all_at_once.trace["window_loss"], rtol=1e-4)


@pytest.fixture(scope="module")
def all_at_once():
    found = descend(window_chunk=1000)
    assert np.ptp(found.movies) > 1
    return found


def test_less_than_a_window_is_one_line():
    with pytest.raises(NeuroreconError, match=r"memory_gib: expected at least .* GiB for one window") as caught:
        descend(memory_gib=1e-5)
    assert "\n" not in str(caught.value)
    with pytest.raises(NeuroreconError, match="memory_gib: expected 0 or more, found -1"):
        descend(memory_gib=-1)


def scaled(factor, predicted, target):
    return factor * poisson(predicted, target)


def test_a_bound_that_suffices_changes_nothing():
    """Also with a loss that holds arrays of its own."""
    responses, behaviour = (values[0] for values in toy_clips(1))
    recipe = default_recipe(losses={"scaled": (0.1, Partial(scaled, np.asarray(2.0, np.float32)))})
    options = {"recipe": recipe, "key": jax.random.key(0), "num_steps": 2}
    plain, bound = (
        reconstruct([toy("dwiseneuro")], responses, behaviour, memory_gib=gib, **options) for gib in (0.0, 1.0)
    )
    np.testing.assert_array_equal(plain.movies, bound.movies)
