"""Movies as files: mp4 (H.264, plays in every browser), gif and multi-page tiff; whole or not at all."""

import math
import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import imageio_ffmpeg
import matplotlib
import numpy as np
import tifffile
from PIL import Image, ImageDraw, ImageFont

from neurorecon.errors import NeuroreconError
from neurorecon.files import atomic_path
from neurorecon.reporting.panels import check_mask, check_movie, enlarge, grey_panel, mask_edge

BACKGROUND = 24  # grey value around the panels
LABEL_COLOUR = (214, 214, 214)
EDGE_COLOUR = (240, 228, 66)  # Okabe-Ito yellow
DIMMED = 0.35  # how much of a pixel outside the mask remains


def write_movie(
    path: str | os.PathLike,
    panels: Mapping[str, np.ndarray],
    frame_rate: float,
    mask: np.ndarray | None = None,
    scale: int | None = None,
) -> None:
    """Writes labelled panels side by side as mp4.

    Args:
      path: ends in `.mp4`.
      panels: label -> (time, height, width) grey values 0..255, or (time, height, width, 3) uint8 colours.
      frame_rate: frames per second.
      mask: (height, width) bool; its outside is dimmed and its edge drawn.
      scale: screen pixels per movie pixel; None makes a panel about 320 wide.

    Raises:
      NeuroreconError: shapes that differ, pixels that aren't finite, a disk that can't be written.
    """
    path = _with_suffix(path, ".mp4")
    frames, _ = _composed(panels, mask, scale)
    write_mp4(path, frames, frame_rate)


def write_gif(
    path: str | os.PathLike,
    panels: Mapping[str, np.ndarray],
    frame_rate: float,
    mask: np.ndarray | None = None,
    scale: int | None = None,
    every: int = 2,
) -> None:
    """Like `write_movie`, as an endless gif of every `every`-th frame.

    A gif counts time in hundredths of a second, so the speed is right to the nearest hundredth a frame.
    """
    path = _with_suffix(path, ".gif")
    delay = round(100 * every / _checked_rate(frame_rate)) * 10
    frames, _ = _composed(panels, mask, scale)
    images = [
        Image.fromarray(frame).convert("P", palette=Image.Palette.ADAPTIVE)
        for index, frame in enumerate(frames)
        if index % every == 0
    ]
    with atomic_path(path) as temporary:
        images[0].save(temporary, save_all=True, append_images=images[1:], duration=max(delay, 20), loop=0)


def write_tiff(path: str | os.PathLike, movie: np.ndarray, frame_rate: float | None = None) -> None:
    """Writes `movie` (time, height, width) as a multi-page tiff, values unchanged; ImageJ opens a stack.

    float32, uint8 and uint16 are kept as they are; other types must fit float32 exactly.

    Raises:
      NeuroreconError: not a finite movie, values that float32 would change, a disk that can't be written.
    """
    path = _with_suffix(path, ".tiff", ".tif")
    movie = check_movie(movie, str(path))
    if movie.dtype not in (np.float32, np.uint8, np.uint16):
        kept = movie.astype(np.float32)
        if not np.array_equal(kept, movie):
            raise NeuroreconError(
                f"{path}: expected float32, uint8 or uint16, found {movie.dtype} with values that "
                "float32 would change; convert the movie first"
            )
        movie = kept
    metadata: dict = {"axes": "TYX"}
    if frame_rate is not None:
        metadata |= {"fps": _checked_rate(frame_rate), "finterval": 1.0 / frame_rate}
    with atomic_path(path) as temporary:
        tifffile.imwrite(temporary, movie, imagej=True, photometric="minisblack", metadata=metadata)


def write_mp4(path: str | os.PathLike, frames: Iterable[np.ndarray], frame_rate: float, quality: int = 17) -> None:
    """Encodes frames (height, width, 3) uint8, of one size, as H.264 in yuv420p, quietly.

    Sides must be even, because yuv420p halves the colours. `quality` is x264's constant rate factor: smaller
    is better and larger on disk. Without B-frames frame k is at k / frame_rate exactly, also after a seek.
    """
    rate = _checked_rate(frame_rate)
    iterator = iter(frames)
    first = next(iterator, None)
    if first is None:
        raise NeuroreconError(f"{path}: expected at least one frame, found none")
    height, width = first.shape[:2]
    with atomic_path(path) as temporary, tempfile.TemporaryFile() as said:
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-nostdin", "-loglevel", "error"]
        command += [
            "-f",
            "rawvideo",
            "-pix_fmt",
            "rgb24",
            "-s",
            f"{width}x{height}",
            "-r",
            repr(rate),
            "-i",
            "-",
        ]
        command += ["-an", "-c:v", "libx264", "-preset", "medium", "-crf", str(quality), "-bf", "0"]
        # Says which of the two usual colour matrices was used, so that no player has to guess.
        command += ["-vf", "scale=out_color_matrix=bt709:out_range=tv", "-pix_fmt", "yuv420p"]
        command += ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709"]
        command += ["-fflags", "+bitexact", "-movflags", "+faststart", str(temporary)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=said, stderr=said)
        assert process.stdin is not None
        try:
            process.stdin.write(first.tobytes())
            for frame in iterator:
                process.stdin.write(frame.tobytes())
            process.stdin.close()
        except BrokenPipeError:
            pass  # ffmpeg has given up; what it said is raised below
        except BaseException:
            process.kill()
            raise
        finally:
            status = process.wait()
        if status:
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines()
            raise OSError(f"ffmpeg stopped with status {status}: {lines[-1].strip() if lines else 'no reason given'}")


def label_font(size: int) -> ImageFont.FreeTypeFont:
    """The sans-serif font that comes with matplotlib: the same labels on every machine."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def _composed(
    panels: Mapping[str, np.ndarray], mask: np.ndarray | None, scale: int | None
) -> tuple[Iterator[np.ndarray], tuple[int, int]]:
    """Frames with the panels in a row under their labels, and their (height, width)."""
    if not panels:
        raise NeuroreconError("panels: expected at least one label -> movie, found none")
    coloured = {label: _as_colours(label, panel) for label, panel in panels.items()}
    shapes = {panel.shape[:3] for panel in coloured.values()}
    if len(shapes) > 1:
        found = ", ".join(f"{label} {panel.shape[:3]}" for label, panel in coloured.items())
        raise NeuroreconError(f"panels: expected movies of one (time, height, width), found {found}")
    num_frames, height, width = shapes.pop()
    if scale is None:
        scale = max(1, round(320 / width))
    if scale < 1:
        raise NeuroreconError(f"scale: expected a whole number from 1, found {scale}")
    keep = edge = None
    if mask is not None:
        mask = check_mask(mask, (height, width), "mask")
        keep = np.where(mask, 1.0, DIMMED).astype(np.float32)[..., None]
        edge = mask_edge(enlarge(mask, scale))
    gap = max(4, width * scale // 40)
    size = max(9, min(15, width * scale // 12))
    strip = size + 2 * gap
    left = [gap + index * (width * scale + gap) for index in range(len(coloured))]
    total = (_even(strip + height * scale + gap), _even(left[-1] + width * scale + gap))
    canvas = _labelled(total, list(coloured), left, size, gap, width * scale)

    def frames() -> Iterator[np.ndarray]:
        for time in range(num_frames):
            picture = canvas.copy()
            for x, panel in zip(left, coloured.values(), strict=True):
                image = panel[time]
                if keep is not None:
                    image = (image * keep + BACKGROUND * (1 - keep)).round().astype(np.uint8)
                image = enlarge(image, scale)
                if edge is not None:
                    image[edge] = EDGE_COLOUR
                picture[strip : strip + height * scale, x : x + width * scale] = image
            yield picture

    return frames(), total


def _labelled(total: tuple[int, int], labels: list[str], left: list[int], size: int, gap: int, room: int) -> np.ndarray:
    picture = Image.new("RGB", (total[1], total[0]), (BACKGROUND,) * 3)
    draw, font = ImageDraw.Draw(picture), label_font(size)
    for x, label in zip(left, labels, strict=True):
        shown = label
        while len(shown) > 1 and draw.textlength(shown, font=font) > room:
            shown = shown.rstrip("…")[:-1] + "…"
        draw.text((x, gap), shown, fill=LABEL_COLOUR, font=font)
    return np.asarray(picture)


def _as_colours(label: str, panel: np.ndarray) -> np.ndarray:
    panel = np.asarray(panel)
    if panel.ndim == 4 and panel.shape[-1] == 3 and panel.dtype == np.uint8 and panel.size:
        return panel
    return grey_panel(panel, f"panel {label}")


def _checked_rate(frame_rate: float) -> float:
    rate = float(frame_rate)
    if not (math.isfinite(rate) and rate > 0):
        raise NeuroreconError(f"frame_rate: expected frames per second above 0, found {frame_rate}")
    return rate


def _with_suffix(path: str | os.PathLike, *suffixes: str) -> Path:
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise NeuroreconError(f"{path}: expected a name ending in {' or '.join(suffixes)}, found {path.suffix!r}")
    return path


def _even(number: int) -> int:
    return number + number % 2
