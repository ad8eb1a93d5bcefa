"""Folds: bit for bit the published ones; near-duplicates found, strangers left alone."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from neurorecon.errors import NeuroreconError
from neurorecon.training.folds import fold, frame_hash, hash_frames, movie_hash, near_duplicates
from tests.shared_data import SHARED, needs_shared


@needs_shared("reference/training_pieces.npz")
def test_hashes_and_folds_are_the_published_ones_bit_for_bit():
    reference = np.load(SHARED / "reference/training_pieces.npz")
    for i, length in enumerate(reference["phash_lengths"]):
        movie = reference["phash_videos"][i, :, :, :length].transpose(2, 0, 1)
        frames = hash_frames(length)
        assert frames == reference["phash_frame_indices"][i].tolist()
        assert [frame_hash(movie[t]) for t in frames] == reference["phash_frame_hashes"][i].tolist()
        assert movie_hash(movie) == int(reference["phash_hash"][i])
        assert fold(movie) == int(reference["phash_fold"][i])
        # fractions are cut off, not rounded
        assert fold(np.minimum(movie + 0.9, 255.0)) == int(reference["phash_fold"][i])


def scene(seed, num_frames=60, shift=0):
    """Blobs that drift over a static layout which all scenes share."""
    rng = np.random.default_rng(seed)
    field = gaussian_filter(rng.normal(0, 1, (num_frames + 20, 44, 72)), (8, 4, 4), mode="wrap")
    field = field / field.std() * 40
    layout = np.linspace(30, -30, 44)[:, None]
    movie = np.clip(127.5 + layout + field, 0, 255).astype(np.float32)
    return movie[:num_frames, 4 + shift : 40 + shift, 4 + shift : 68 + shift]


def test_repeats_share_a_fold():
    assert fold(scene(0)) == fold(scene(0).copy())
    assert len({fold(scene(i)) for i in range(12)}) > 3


def test_near_duplicates_survive_shift_offset_contrast_and_noise():
    clips = [scene(i) for i in range(4)]
    rng = np.random.default_rng(9)
    variants = [
        scene(0, shift=1),
        clips[1][13:],
        clips[2] * 0.5 + 30,
        np.clip(clips[3] + rng.normal(0, 20, clips[3].shape), 0, 255),
        scene(77),
    ]
    found = near_duplicates(clips, variants)
    assert {(p.a, p.b) for p in found} == {(0, 0), (1, 1), (2, 2), (3, 3)}
    offsets = {p.a: p.offset for p in found}
    assert offsets == {0: 0, 1: -13, 2: 0, 3: 0}
    assert [p.correlation for p in found] == sorted((p.correlation for p in found), reverse=True)


def test_the_published_hash_misses_what_the_comparison_finds():
    clip = scene(5)
    moved = clip[7:]
    assert movie_hash(clip) != movie_hash(moved)
    assert near_duplicates([clip], [moved])[0].offset == -7


def test_a_short_overlap_is_no_duplicate():
    first, second = scene(1), scene(2)
    second = np.concatenate([first[-12:], second[:48]])  # shares a fifth
    assert near_duplicates([first], [second]) == []
    assert near_duplicates([first], [second], min_overlap=0.15)[0].offset == -48


def test_blank_movies_are_nobodys_duplicates():
    blank = np.full((20, 36, 64), 127.5)
    assert near_duplicates([blank], [blank, scene(1)]) == []


def test_bad_input_gets_one_line():
    clip = scene(0, num_frames=8)
    broken = clip.copy()
    broken[:] = np.nan
    for call, words in [
        (lambda: movie_hash(clip[:4]), "at least 5 frames"),
        (lambda: movie_hash(clip[0]), "expected (time, height, width)"),
        (lambda: movie_hash(broken), "found NaN in frame"),
        (lambda: fold(clip, 1), "num_folds"),
        (lambda: near_duplicates([clip[0]], [clip]), "movies_a[0]: expected a movie"),
        (lambda: near_duplicates([clip], [broken]), "movies_b[0]: expected finite"),
        (lambda: near_duplicates([clip], [clip], threshold=0), "threshold"),
    ]:
        with pytest.raises(NeuroreconError) as caught:
            call()
        assert words in str(caught.value) and "\n" not in str(caught.value)
