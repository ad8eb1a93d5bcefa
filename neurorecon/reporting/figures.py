"""Pictures for a README, a talk or a paper: the film strip and the chart of scores beside their controls."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from neurorecon.errors import NeuroreconError
from neurorecon.files import atomic_path
from neurorecon.reporting.movies import EDGE_COLOUR, label_font
from neurorecon.reporting.panels import check_mask, check_movie, enlarge, grey_panel, mask_edge
from neurorecon.reporting.scores import Score, headline_scores

TEXT_COLOUR = (125, 125, 125, 255)  # readable on white and on black, as the strip's ground is transparent
OUTSIDE_OPACITY = 100


def film_strip(
    truth: np.ndarray,
    reconstruction: np.ndarray,
    mask: np.ndarray | None,
    path: str | os.PathLike,
    *,
    frames: Sequence[int],
    frame_rate: float = 30.0,
    linear_decoder: np.ndarray | None = None,
    scale: int | None = None,
) -> None:
    """Writes a PNG: rows true, reconstructed (and linear decoder), columns the chosen frames and times.

    Args:
      truth: (time, height, width), grey values 0..255; `reconstruction` and `linear_decoder` alike.
      mask: (height, width) bool; the outside fades and the edge is drawn. None: no mask.
      path: ends in `.png`.
      frames: indices into time.
      frame_rate: frames per second, for the time labels.
      scale: picture pixels per movie pixel; None makes a frame about 128 wide.

    Raises:
      NeuroreconError: shapes that differ, a frame outside the movie, a disk that can't be written.
    """
    image = film_strip_image(
        truth,
        reconstruction,
        mask,
        frames=frames,
        frame_rate=frame_rate,
        linear_decoder=linear_decoder,
        scale=scale,
    )
    with atomic_path(path) as temporary:
        image.save(temporary, format="PNG", optimize=True)


def film_strip_image(
    truth: np.ndarray,
    reconstruction: np.ndarray,
    mask: np.ndarray | None,
    *,
    frames: Sequence[int],
    frame_rate: float = 30.0,
    linear_decoder: np.ndarray | None = None,
    scale: int | None = None,
) -> Image.Image:
    """The picture that `film_strip` writes (RGBA, transparent ground)."""
    rows = {"True": truth, "Reconstructed": reconstruction}
    if linear_decoder is not None:
        rows["Linear decoder"] = linear_decoder
    rows = {label: check_movie(movie, f"film strip, {label.lower()}") for label, movie in rows.items()}
    num_frames, height, width = rows["True"].shape
    for label, movie in rows.items():
        if movie.shape != rows["True"].shape:
            raise NeuroreconError(
                f"film strip, {label.lower()}: expected the true movie's shape {rows['True'].shape}, "
                f"found {movie.shape}; show movies of one clip"
            )
    if not len(frames) or min(frames) < 0 or max(frames) >= num_frames:
        raise NeuroreconError(f"frames: expected indices from 0 to {num_frames - 1}, found {list(frames)}")
    scale = scale or max(1, round(128 / width))
    inside = np.ones((height, width), bool) if mask is None else check_mask(mask, (height, width), "mask")
    opacity = enlarge(np.where(inside, 255, OUTSIDE_OPACITY).astype(np.uint8), scale)
    edge = mask_edge(enlarge(inside, scale))

    size, gap = max(11, width * scale // 10), max(3, width * scale // 32)
    font = label_font(size)
    margin = int(max(font.getlength(label) for label in rows)) + 3 * gap
    across, down = width * scale + gap, height * scale + gap
    strip = Image.new("RGBA", (margin + across * len(frames), size + 3 * gap + down * len(rows)), (0, 0, 0, 0))
    draw = ImageDraw.Draw(strip)
    for column, frame in enumerate(frames):
        x = margin + column * across
        draw.text((x + width * scale / 2, gap), f"{frame / frame_rate:.2f} s", TEXT_COLOUR, font, anchor="ma")
        for row, movie in enumerate(rows.values()):
            colours = enlarge(grey_panel(movie[frame : frame + 1])[0], scale)
            colours[edge] = EDGE_COLOUR
            picture = Image.fromarray(np.dstack([colours, np.where(edge, 255, opacity).astype(np.uint8)]))
            strip.paste(picture, (x, size + 3 * gap + row * down))
    for row, label in enumerate(rows):
        y = size + 3 * gap + row * down + height * scale / 2
        draw.text((margin - 2 * gap, y), label, TEXT_COLOUR, font, anchor="rm")
    return strip


def spread_frames(num_frames: int, count: int, skip: int = 0) -> list[int]:
    """`count` frames spread evenly over `skip` .. `num_frames`, in the middle of their shares."""
    skip = skip if skip < num_frames else 0
    share = (num_frames - skip) / count
    return sorted({int(skip + share * (index + 0.5)) for index in range(count)})


def scores_figure(metrics: Mapping, path: str | os.PathLike) -> None:
    """Writes the movie correlation beside its controls, dots with 95 % intervals, as PNG, SVG or PDF.

    `metrics` is what metrics.json holds.
    """
    scores: list[Score] = headline_scores(metrics)
    figure = Figure(figsize=(5.2, 0.5 + 0.42 * len(scores)), layout="constrained")
    axes = figure.subplots()
    for row, score in enumerate(scores):
        if score.mean is None:
            axes.text(0, row, "not defined", va="center", color="0.4", fontsize=8)
            continue
        if score.low is not None and score.high is not None:
            axes.plot(
                [score.low, score.high],
                [row, row],
                color=score.colour,
                lw=4,
                alpha=0.4,
                solid_capstyle="round",
            )
        axes.plot(score.mean, row, "o", color=score.colour, ms=7)
    axes.axvline(0, color="0.7", lw=0.8, zorder=0)
    axes.set_yticks(range(len(scores)), [score.label for score in scores])
    axes.set_ylim(len(scores) - 0.5, -0.5)
    axes.set_xlabel("movie correlation (mean, 95 % interval)")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=200)
