"""Folds by perceptual hash, as published, and a check for near-duplicates that the hash misses.

The published rule puts repeats of one movie into one fold, but the exclusive or of five hashes has no
notion of "near": one different bit anywhere lands the movie in another fold, and 9 of the paper's 50 test
clips had near-duplicates in training. `near_duplicates` compares the movies themselves.
"""

from collections.abc import Sequence
from typing import NamedTuple

import imagehash
import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, zoom

from neurorecon.errors import NeuroreconError

NUM_FOLDS = 7
HASHED_FRAMES = 5


def hash_frames(num_frames: int) -> list[int]:
    """The five frames that are hashed: range(step // 2, num_frames, step)[:5] with step = num_frames // 5.

    Raises:
      NeuroreconError: fewer than five frames.
    """
    step = num_frames // HASHED_FRAMES
    if step == 0:
        raise NeuroreconError(f"movie: expected at least {HASHED_FRAMES} frames to hash, found {num_frames}")
    return list(range(step // 2, num_frames, step))[:HASHED_FRAMES]


def frame_hash(frame: np.ndarray) -> int:
    """64-bit perceptual hash of a frame (height, width), grey values 0..255, truncated to integers.

    Resized to 32 x 32 (Pillow's 8-bit LANCZOS; another implementation flips bits), type-II cosine
    transform, lowest 8 x 8 coefficients including the constant one, bit = above their median, row by row,
    first bit most significant.
    """
    image = Image.fromarray(np.clip(frame, 0, 255).astype(np.uint8))
    bits = imagehash.phash(image).hash
    return int.from_bytes(np.packbits(bits.ravel()).tobytes(), "big")


def movie_hash(movie: np.ndarray) -> int:
    """Exclusive or of the hashes of five frames of a movie (time, height, width), cut to its valid length.

    Raises:
      NeuroreconError: not a movie, fewer than five frames, or NaN in a hashed frame.
    """
    movie = np.asarray(movie)
    if movie.ndim != 3:
        raise NeuroreconError(f"movie: expected (time, height, width), found {movie.shape}")
    value = 0
    for t in hash_frames(len(movie)):
        if not np.isfinite(movie[t]).all():
            raise NeuroreconError(f"movie: expected finite grey values, found NaN in frame {t}; cut the padding")
        value ^= frame_hash(movie[t])
    return value


def fold(movie: np.ndarray, num_folds: int = NUM_FOLDS) -> int:
    """The fold of a movie: its hash modulo the number of folds."""
    if num_folds < 2:
        raise NeuroreconError(f"num_folds: expected at least 2, found {num_folds}")
    return movie_hash(movie) % num_folds


class NearDuplicate(NamedTuple):
    """Two movies that show the same: `movies_a[a]` frame t is like `movies_b[b]` frame t + offset."""

    a: int
    b: int
    correlation: float
    offset: int


def near_duplicates(
    movies_a: Sequence[np.ndarray],
    movies_b: Sequence[np.ndarray],
    *,
    threshold: float = 0.8,
    min_overlap: float = 0.5,
    frame_step: int = 5,
) -> list[NearDuplicate]:
    """Pairs of movies that show the same scene, also shifted by pixels or frames, or with other contrast.

    Frames are blurred and reduced to 9 x 16 cells with mean 0 and norm 1, so that brightness, contrast,
    noise and small shifts don't matter. The correlation of a pair is the mean over overlapping frames, at
    the offset in time where it is highest. Unrelated natural movies share their layout (bright above, dark
    below) and reach 0.7, hence the high threshold. Movies that overlap less than `min_overlap` are
    not found.

    Args:
      movies_a, movies_b: (time, height, width) each, of any frame size. To compare a set with itself,
        pass it twice and drop the pairs with b <= a.
      threshold: least correlation of a pair.
      min_overlap: share of the shorter movie that must overlap.
      frame_step: every so many frames of movies_a are looked at.

    Returns:
      The pairs, highest correlation first.

    Raises:
      NeuroreconError: not movies, NaN, or arguments out of range.
    """
    if not 0 < threshold <= 1 or not 0 < min_overlap <= 1 or frame_step < 1:
        raise NeuroreconError(
            "threshold, min_overlap, frame_step: expected (0, 1], (0, 1] and at least 1, "
            f"found {threshold}, {min_overlap}, {frame_step}"
        )
    described_b = [_descriptors(f"movies_b[{j}]", m) for j, m in enumerate(movies_b)]
    pairs = []
    for i, movie in enumerate(movies_a):
        first = _descriptors(f"movies_a[{i}]", movie)
        for j, second in enumerate(described_b):
            overlap = max(1, round(min_overlap * min(len(first), len(second))))
            value, offset = _best_offset(first, second, overlap, frame_step)
            if value >= threshold:
                pairs.append(NearDuplicate(i, j, value, offset))
    return sorted(pairs, key=lambda p: -p.correlation)


def _descriptors(name: str, movie: np.ndarray) -> np.ndarray:
    """(time, cell) float32, mean 0 and norm 1 in each frame; 0 for a frame without contrast."""
    movie = np.asarray(movie, np.float32)
    if movie.ndim != 3 or 0 in movie.shape:
        raise NeuroreconError(f"{name}: expected a movie (time, height, width), found shape {movie.shape}")
    if not np.isfinite(movie).all():
        raise NeuroreconError(f"{name}: expected finite grey values, found NaN; cut the padding")
    factors = np.array([9, 16]) / movie.shape[1:]
    smooth = gaussian_filter(movie, (0, *(0.8 / factors)))
    small = zoom(smooth, (1, *factors), order=1, grid_mode=True, mode="nearest").reshape(len(movie), -1)
    small -= small.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(small, axis=1, keepdims=True)
    # A cell differs by less than a thousandth of a grey value on average: nothing to compare.
    return np.where(norms > 1e-3 * np.sqrt(small.shape[1]), small / np.maximum(norms, 1e-9), 0.0)


def _best_offset(first: np.ndarray, second: np.ndarray, overlap: int, frame_step: int) -> tuple[float, int]:
    """Highest mean correlation over overlapping frames, and the offset of second at which it is found."""
    times = np.arange(0, len(first), frame_step)
    similarity = first[times] @ second.T
    # sums[o + last] adds up the pairs (t, t + o): each row of the similarity, moved by its time.
    last = int(times[-1])
    sums, counts = np.zeros(last + len(second)), np.zeros(last + len(second))
    for row, t in zip(similarity, times, strict=True):
        sums[last - t : last - t + len(second)] += row
        counts[last - t : last - t + len(second)] += 1
    enough = counts * frame_step >= min(overlap, frame_step * counts.max())
    means = np.where(enough, sums / np.maximum(counts, 1), -1.0)
    best = int(np.argmax(means))
    return float(means[best]), best - last
