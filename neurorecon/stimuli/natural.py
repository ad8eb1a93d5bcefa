"""Procedural natural movies: occluding textured objects, seen by a moving camera, with cuts.

The scene model is the dead-leaves model (Ruderman 1997; Lee, Mumford & Huang 2001): opaque objects whose
sizes follow 1 / r^3 occlude one another, which gives images the power spectrum 1 / f^2 and the edges of
natural scenes. Objects carry textures of their own orientation and 1 / f fall-off; layers at several depths
move against each other as the camera pans, zooms and shakes; some objects move by themselves. Everything is
drawn on finer canvases and averaged over the area of each pixel, so that motion is smooth below one pixel.
"""

import dataclasses

import numpy as np
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from neurorecon.stimuli.random_walks import ornstein_uhlenbeck
from neurorecon.stimuli.sizes import check_seed, check_sizes

_FINER = 2  # canvas pixels per frame pixel, each way
_REFERENCE_HEIGHT = 36  # lengths below are in pixels of a frame of this height


@dataclasses.dataclass(frozen=True)
class _View:
    """Where the camera looks: centre (time, 2) in frame pixels, magnification (time,)."""

    centre: np.ndarray
    zoom: np.ndarray


def natural_movie(
    seed: int, *, num_frames: int = 300, height: int = 36, width: int = 64, frame_rate: float = 30.0
) -> np.ndarray:
    """One clip of procedural natural film.

    Args:
      seed: non-negative; the same seed and sizes give the same movie.
      num_frames: length in frames.
      height, width: of a frame, pixels; objects scale with the height.
      frame_rate: Hz; speeds are per second.

    Returns:
      (time, height, width) float32, whole numbers 0..255.

    Raises:
      NeuroreconError: a size or rate that is not positive, or a negative seed.
    """
    check_sizes(num_frames=num_frames, height=height, width=width, frame_rate=frame_rate)
    check_seed(seed)
    rng = np.random.default_rng([0x6E6174, seed])
    scenes = [_scene(rng, length, height, width, frame_rate) for length in _shot_lengths(rng, num_frames, frame_rate)]
    return np.rint(np.clip(np.concatenate(scenes), 0, 255)).astype(np.float32)


def _shot_lengths(rng: np.random.Generator, num_frames: int, frame_rate: float) -> list[int]:
    """Shots between cuts, frames: 2..4 s on average, at least 0.6 s; a fifth of the clips has no cut."""
    mean = rng.uniform(2.0, 4.0)
    if rng.random() < 0.2:
        return [num_frames]
    shortest = max(1, round(0.6 * frame_rate))
    lengths, left = [], num_frames
    while left > 0:
        length = shortest + int(rng.exponential((mean - 0.6) * frame_rate))
        if left - length < shortest:
            length = left
        lengths.append(length)
        left -= length
    return lengths


def _scene(rng: np.random.Generator, num_frames: int, height: int, width: int, frame_rate: float) -> np.ndarray:
    """One shot, (time, height, width), grey values that may leave 0..255 by rounding only."""
    scale = height / _REFERENCE_HEIGHT
    size = (_even(1.7 * height * _FINER), _even(1.5 * width * _FINER))
    tone = _Tone.draw(rng)
    textures = [_texture(rng, size) for _ in range(4)]
    speed = rng.lognormal(np.log(5.0), 0.8) * (rng.random() > 0.25)  # pixels / s; a quarter is on a tripod
    pan = _path(rng, num_frames, frame_rate, speed=speed * scale, correlation=1.5)
    shake = ornstein_uhlenbeck(rng, num_frames, 2, seconds=0.15, frame_rate=frame_rate)
    pan += shake * rng.exponential(0.15) * scale
    pull = ornstein_uhlenbeck(rng, num_frames, 1, seconds=2.0, frame_rate=frame_rate)[:, 0]
    zoom = np.exp(np.clip(0.08 * rng.exponential() * np.cumsum(pull) / frame_rate, -0.3, 0.3))

    def view(parallax: float) -> _View:
        return _View(pan * parallax + rng.uniform(0, 1000, 2), zoom ** min(parallax, 1.0))

    clutter = rng.lognormal(np.log(2.0), 0.4) * scale  # the smallest object: from foliage to walls
    base = rng.normal(0.0, 0.3) + rng.gamma(3.0, 0.2) * textures[0]
    back = np.stack([base, np.ones(size, np.float32)]).astype(np.float32)
    _scatter(rng, back, textures, count=int(rng.integers(20, 110)), smallest=clutter, largest=0.8 * height)
    back[0] += _light(rng, size)
    focus = max(0.0, rng.normal(0.0, 0.4)) * scale * _FINER
    far = gaussian_filter(tone(back[0]), focus, mode="wrap", truncate=2.5)
    movie = _look(far[None], view(rng.uniform(0.5, 0.8)), height, width)[:, 0]

    front = np.zeros((2, *size), np.float32)
    _scatter(rng, front, textures, count=int(rng.integers(1, 12)), smallest=1.5 * clutter, largest=0.6 * height)
    seen = _look(np.stack([tone(front[0]) * front[1], front[1]]), view(rng.uniform(1.0, 1.4)), height, width)
    movie = movie * (1 - seen[:, 1]) + seen[:, 0]

    for _ in range(int(rng.integers(2, 8))):
        radius = _radius(rng, 2.5 * scale, 0.4 * height)
        speed = rng.lognormal(np.log(8.0), 0.7) * scale
        place = rng.uniform(0, 1, 2) * (height, width)
        path = place + _path(rng, num_frames, frame_rate, speed=speed, correlation=1.0) - (pan - pan[:1])
        _paste(movie, _sprite(rng, radius, textures, tone), path)
    flicker = 1 + 0.04 * ornstein_uhlenbeck(rng, num_frames, 1, seconds=3.0, frame_rate=frame_rate)
    return movie * flicker[..., None]


@dataclasses.dataclass(frozen=True)
class _Tone:
    """Film response: log luminance to grey value, a sigmoid, so that highlights and shadows compress."""

    exposure: float
    contrast: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "_Tone":
        return cls(exposure=rng.normal(-0.4, 0.45), contrast=rng.uniform(0.6, 1.3))

    def __call__(self, log_luminance: np.ndarray) -> np.ndarray:
        return (255 / (1 + np.exp(-(self.exposure + self.contrast * log_luminance)))).astype(np.float32)


def _even(length: float) -> int:
    return 2 * int(np.ceil(length / 2))


def _path(
    rng: np.random.Generator, num_frames: int, frame_rate: float, *, speed: float, correlation: float
) -> np.ndarray:
    """Smooth path (time, 2) in pixels: steady drift plus Ornstein-Uhlenbeck velocity, mostly horizontal."""
    drift = rng.standard_normal(2) * (0.5, 1.0)
    wander = ornstein_uhlenbeck(rng, num_frames, 2, seconds=correlation, frame_rate=frame_rate) * (0.6, 1.0)
    velocity = gaussian_filter1d(wander, 0.1 * frame_rate, axis=0, mode="nearest") + drift
    return np.cumsum(velocity * speed / np.sqrt(2), axis=0) / frame_rate


def _texture(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Periodic, stretched texture of zero mean and unit variance whose amplitude falls as 1 / f^a."""
    fy = np.fft.fftfreq(size[0])[:, None]
    fx = np.fft.rfftfreq(size[1])[None]
    angle, stretch = rng.uniform(0, np.pi), rng.uniform(1.0, 3.0)
    along = np.cos(angle) * fx + np.sin(angle) * fy
    across = np.cos(angle) * fy - np.sin(angle) * fx
    frequency = np.sqrt((along * stretch) ** 2 + across**2)
    frequency[0, 0] = 1.0
    amplitude = (frequency + 0.01) ** -rng.uniform(0.9, 1.5)
    amplitude[0, 0] = 0.0
    phase = rng.standard_normal(amplitude.shape) + 1j * rng.standard_normal(amplitude.shape)
    texture = np.fft.irfft2(amplitude * phase, size)
    return (texture / texture.std()).astype(np.float32)


def _light(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Light from above and from one side: slow, periodic changes of log luminance."""
    waves = []
    for length, strength in zip(size, (0.9, 0.4)):
        phase = 2 * np.pi * (np.arange(length) / length + rng.random())
        waves.append(abs(rng.normal(0.0, strength)) * np.cos(phase))
    return (waves[0][:, None] + waves[1][None]).astype(np.float32)


def _radius(rng: np.random.Generator, smallest: float, largest: float) -> float:
    """A radius from the density 1 / r^3 between the limits, by inversion."""
    low, high = smallest**-2.0, max(largest, smallest) ** -2.0
    return float((low - rng.random() * (low - high)) ** -0.5)


def _leaf(rng: np.random.Generator, radius: float, textures: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """One object: log luminance and opacity, both (side, side), radius in canvas pixels."""
    reach = int(np.ceil(1.5 * radius)) + 1
    line = np.arange(-reach, reach + 1, dtype=np.float32)
    angle, aspect = rng.uniform(0, np.pi), rng.uniform(0.5, 1.0)
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u = np.abs(cosine * line[None] + sine * line[:, None]) * aspect
    v = np.abs(cosine * line[:, None] - sine * line[None]) / aspect
    if rng.random() < 0.3:  # made by people: boxes, poles
        distance = np.maximum(u, v) * 1.15
    else:
        distance = np.sqrt(u * u + v * v)
        lobes = rng.normal(0.0, 0.12, 2)
        bearing = np.arctan2(line[:, None], line[None])
        distance = distance * (1 + lobes[0] * np.cos(2 * bearing + angle) + lobes[1] * np.cos(3 * bearing))
    opacity = np.clip(radius - distance + 0.5, 0, 1)
    texture = textures[rng.integers(len(textures))]
    rows = (rng.integers(texture.shape[0]) + np.arange(line.size)) % texture.shape[0]
    columns = (rng.integers(texture.shape[1]) + np.arange(line.size)) % texture.shape[1]
    paint = rng.normal(0.0, 1.0) + rng.gamma(2.0, 0.18) * texture[rows][:, columns]
    shade = rng.normal(0.0, 0.25, 2) / radius
    paint = paint + (shade[0] * line[:, None] + shade[1] * line[None])
    return paint.astype(np.float32), opacity.astype(np.float32)


def _scatter(
    rng: np.random.Generator,
    canvas: np.ndarray,
    textures: list[np.ndarray],
    *,
    count: int,
    smallest: float,
    largest: float,
) -> None:
    """Drops `count` objects per frame's area on a periodic canvas (2, height, width): luminance and
    opacity.
    """
    _, height, width = canvas.shape
    for _ in range(count * 2):
        radius = min(_radius(rng, smallest, largest) * _FINER, (min(height, width) - 4) / 3.2)
        paint, opacity = _leaf(rng, radius, textures)
        rows = (rng.integers(height) + np.arange(paint.shape[0])) % height
        columns = (rng.integers(width) + np.arange(paint.shape[1])) % width
        place = np.ix_(rows, columns)
        canvas[0][place] += opacity * (paint - canvas[0][place])
        canvas[1][place] = np.maximum(canvas[1][place], opacity)


def _overlaps(edges: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Share of each pixel covered by each canvas pixel, for area averages along one axis.

    Args:
      edges: (time, pixel + 1) increasing, in canvas pixels.
      length: number of canvas pixels that a frame can touch.

    Returns:
      first canvas pixel (time,) and weights (time, pixel, length), rows summing to 1.
    """
    first = np.floor(edges[:, 0]).astype(int)
    edges = (edges - first[:, None]).astype(np.float32)
    filled = np.clip(edges[..., None] - np.arange(length, dtype=np.float32), 0, 1)
    weights = np.diff(filled, axis=1)
    return first, weights / np.diff(edges, axis=1)[..., None]


def _look(canvas: np.ndarray, view: _View, height: int, width: int) -> np.ndarray:
    """Frames (time, channel, height, width) of a periodic canvas (channel, height, width), as the camera
    moves.
    """
    step = (_FINER / view.zoom)[:, None]
    starts, weights = [], []
    for axis, pixels in enumerate((height, width)):
        edges = view.centre[:, axis, None] * _FINER + (np.arange(pixels + 1) - pixels / 2) * step
        first, share = _overlaps(edges, int(np.ceil(pixels * step.max())) + 2)
        starts.append(first % canvas.shape[1 + axis])
        weights.append(share)
    reach = [weight.shape[2] for weight in weights]
    tiled = canvas
    for axis in range(2):
        index = np.arange(canvas.shape[1 + axis] + reach[axis]) % canvas.shape[1 + axis]
        tiled = np.take(tiled, index, axis=1 + axis)
    frames = np.empty((len(step), len(canvas), height, width), np.float32)
    across = np.ascontiguousarray(weights[1].transpose(0, 2, 1))
    for t, (y, x) in enumerate(zip(*starts)):
        for c in range(len(canvas)):
            frames[t, c] = weights[0][t] @ (tiled[c, y : y + reach[0], x : x + reach[1]] @ across[t])
    return frames


def _sprite(rng: np.random.Generator, radius: float, textures: list[np.ndarray], tone: _Tone) -> np.ndarray:
    """A free object (2, side, side): grey value times opacity, and opacity."""
    paint, opacity = _leaf(rng, radius * _FINER, textures)
    return np.stack([tone(paint) * opacity, opacity])


def _paste(movie: np.ndarray, sprite: np.ndarray, path: np.ndarray) -> None:
    """Draws a sprite onto the movie in place, its centre along `path` (time, 2) in frame pixels."""
    side = sprite.shape[1]
    span = side // _FINER + 2  # frame pixels that it can touch
    corner = path - side / (2 * _FINER)
    first = np.floor(corner).astype(int)
    line = np.arange(side, dtype=np.float32)
    shares = []
    for axis in range(2):
        offset = ((corner[:, axis] - first[:, axis]) * _FINER).astype(np.float32)
        start = offset[:, None, None] + line  # the sprite's pixels, in canvas pixels from the first frame pixel
        edges = np.arange(span + 1, dtype=np.float32)[:, None] * _FINER
        inside = np.clip(edges - start, 0, 1)
        shares.append(np.diff(inside, axis=1) / _FINER)
    rows = np.matmul(shares[0][:, None], sprite[None])
    drawn = np.matmul(rows, shares[1].transpose(0, 2, 1)[:, None])
    _, height, width = movie.shape
    for t, (y, x) in enumerate(first):
        top, bottom, left, right = max(y, 0), min(y + span, height), max(x, 0), min(x + span, width)
        if top >= bottom or left >= right:
            continue
        colour, opacity = drawn[t, :, top - y : bottom - y, left - x : right - x]
        patch = movie[t, top:bottom, left:right]
        patch *= 1 - opacity
        patch += colour
