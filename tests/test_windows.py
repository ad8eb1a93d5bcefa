"""Windows: every tiling covers the movie, and what is split is stitched back."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neurorecon.errors import NeuroreconError
from neurorecon.reconstruction import windows
from neurorecon.reconstruction.recipes import economical_windows, published_windows
from tests.toy_encoders import TOYS

PLANS = {
    "published": lambda frames: windows.published_plan(frames),
    "published, step 1": lambda frames: windows.published_plan(frames, window_frames=5, frame_step=1, shift=3),
    "shifted": lambda frames: windows.shifted_plan(frames, jnp.asarray(3), window_frames=4, frame_step=2),
    "not shifted": lambda frames: windows.shifted_plan(frames, jnp.asarray(0), window_frames=4, frame_step=3),
    "one tile": lambda frames: windows.tiled_plan(frames, tile_frames=80, frame_step=2, context_frames=6),
    "tiles": lambda frames: windows.tiled_plan(frames, tile_frames=9, frame_step=2, context_frames=6),
}


@pytest.mark.parametrize("name", PLANS)
def test_what_is_split_is_stitched_back(name, num_frames=45):
    plan = PLANS[name](num_frames)
    movie = jnp.asarray(np.random.default_rng(0).normal(size=(num_frames, 2, 3)), jnp.float32)
    pieces = windows.split(movie, plan)
    assert pieces.shape == (*plan.frames.shape, 2, 3)
    np.testing.assert_allclose(windows.stitch_mean(pieces, plan, num_frames), movie, rtol=1e-6)
    count = np.asarray(windows.coverage(plan, num_frames))
    assert count.min() >= 1
    np.testing.assert_allclose(
        windows.stitch_sum(pieces, plan, num_frames), movie * count[:, None, None], rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("name", PLANS)
def test_places_beyond_the_movie_get_nothing(name):
    plan = PLANS[name](37)
    outside = ~np.asarray(plan.inside)
    assert not (np.asarray(plan.valid) & outside).any()
    garbage = jnp.where(plan.inside, 0.0, 1e6)[..., None]
    assert not np.asarray(windows.stitch_sum(garbage, plan, 37)).any()
    assert outside.any() == (name not in ("published", "published, step 1"))


def test_published_starts():
    def starts(num_frames):
        return np.asarray(windows.published_plan(num_frames).frames)[:, 0, 0].tolist()

    assert starts(64) == [0, 8, 16, 24, 32, 32]
    assert starts(45) == [0, 8, 13]
    assert starts(32) == [0, 0]
    assert len(starts(300)) == 35
    frames = np.asarray(windows.published_plan(64).frames)
    assert frames[1, 0].tolist() == list(range(8, 40, 2)) and frames[1, 1].tolist() == list(range(9, 41, 2))
    with pytest.raises(NeuroreconError, match="at least 32 frames"):
        windows.published_plan(31)


@pytest.mark.parametrize("shift", range(8))
def test_shifted_windows_hold_each_frame_once(shift):
    plan = windows.shifted_plan(21, jnp.asarray(shift), window_frames=4, frame_step=2)
    assert sorted(np.asarray(plan.frames)[np.asarray(plan.valid)]) == list(range(21))
    first = np.asarray(plan.frames)[np.asarray(plan.valid)].min()
    assert first == 0 and plan.frames[0, 0, 0] == 0


def test_tiles_count_each_frame_with_history_once():
    for tile_frames in (5, 8, 100):
        plan = windows.tiled_plan(23, tile_frames=tile_frames, frame_step=2, context_frames=4)
        frames, valid, inside = (np.asarray(x) for x in plan)
        assert sorted(frames[valid]) == list(range(4, 23))
        # Along a stack, inside the movie, frames follow each other by the step; so the history is the true one.
        steps = np.diff(frames, axis=-1)[inside[..., 1:] & inside[..., :-1]]
        assert set(steps.tolist()) == {2}
        # Each counted place has its whole context before it.
        window, stack, place = np.nonzero(valid)
        for w, s, p in zip(window, stack, place):
            assert p >= 2 and inside[w, s, p - 2 : p + 1].all()


def test_one_stream_is_a_share_of_the_plan():
    plan = windows.tiled_plan(23, tile_frames=8, frame_step=2, context_frames=4)
    kept = [windows.one_stream(plan, jnp.asarray(s)) for s in range(2)]
    together = np.concatenate([np.asarray(k.frames)[np.asarray(k.valid)] for k in kept])
    assert sorted(together) == list(range(4, 23))


@pytest.mark.parametrize("name", TOYS)
def test_plans_of_the_recipes_fit_every_encoder(name):
    encoder = TOYS[name]
    for make in (published_windows, economical_windows):
        counts = np.zeros(40)
        compiled = jax.jit(functools.partial(make, encoder, 40))
        for seed in range(24):
            plan = compiled(jax.random.key(seed))
            frames, valid = np.asarray(plan.frames), np.asarray(plan.valid)
            assert frames.min() >= 0 and frames.max() < 40
            if make is economical_windows:
                assert len(set(frames[valid])) == valid.sum()  # at most once a step
            np.add.at(counts, frames[valid], 1)
        unseen = encoder.warmup_frames * encoder.frame_step if encoder.time_invariant else 0
        assert (counts[unseen if make is economical_windows else 0 :] > 0).all()
