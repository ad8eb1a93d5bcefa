"""Recipes: everything that a reconstruction is made of, composed from parts that users can replace."""

import dataclasses
import difflib
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

from neurorecon.errors import NeuroreconError
from neurorecon.reconstruction import losses as response_losses
from neurorecon.reconstruction import parametrisations, updates, windows
from neurorecon.reconstruction import priors as movie_priors
from neurorecon.reconstruction.stopping import PRODUCTS, HeldOutNeurons

MakePlan = Callable[[Any, int, jax.Array], windows.WindowPlan]
MakeParametrisation = Callable[[tuple[int, int, int], Any], parametrisations.Parametrisation]


_WITH_ARRAYS = ("losses", "priors", "parametrisation", "update", "plan")
_ARRAY = object()  # stands for one in a recipe's structure

TRACE_NAMES = ("loss", "penalty", "window_loss", "window_gradient_norm", "held_out_correlation", *PRODUCTS)


@jax.tree_util.register_pytree_node_class
@dataclasses.dataclass(frozen=True, eq=False)
class Recipe:
    """How a movie is descended to.

    Compared by its parts, functions by identity: a recipe made anew of the same parts compiles nothing. Nor does one
    whose losses, priors, parametrisation, update or plan differ only in arrays that they hold as
    `jax.tree_util.Partial`: as a pytree it has these arrays as leaves, and all else as its structure.

    Attributes:
      name: for logs and reports.
      losses: name -> (weight, response loss), see `losses`.
      priors: name -> (weight, function of the movie (time, height, width) in grey values -> ()), see `priors`.
      parametrisation: (shape, dtype) -> what is descended, see `parametrisations`.
      update: number of steps -> optax transformation, see `updates`.
      num_steps: pixel updates.
      plan: (encoder, number of frames, key) -> the windows of one step, see `windows`.
      mean_loss: each window's loss is a mean over its responses (published), not a sum.
      normalise_windows: divide each window's gradient over all five input channels by its L2 norm + 1e-6 (published).
      stitch: a frame's gradient is the "mean" over the windows that hold it (published) or the "sum".
      ensemble: "movies": each encoder descends to a movie of its own and they are averaged; "gradients": one movie,
        the encoders' gradients averaged at each step.
      canvas: descend the encoder's whole padded canvas, starting at `start` (published), not the screen alone.
      start: grey value of the first movie.
      smoothing: sigma of the final Gaussian over time, height and width; 0 for none.
      ablation: what happens to neurons left out: "exclude" from the loss, or "zero_target", the published way, in which
        they stay with a target of zero.
      penalty_weight: weight of the parametrisation's own negative log prior.
      stop: when to stop before `num_steps`, see `stopping`; None: never.
    """

    name: str
    losses: Mapping[str, tuple[float, response_losses.ResponseLoss]]
    parametrisation: MakeParametrisation
    update: Callable[[int], optax.GradientTransformation]
    num_steps: int
    plan: MakePlan
    priors: Mapping[str, tuple[float, movie_priors.MoviePrior]] = dataclasses.field(default_factory=dict)
    mean_loss: bool = False
    normalise_windows: bool = False
    stitch: Literal["mean", "sum"] = "sum"
    ensemble: Literal["movies", "gradients"] = "gradients"
    canvas: bool = False
    start: float = parametrisations.GREY
    smoothing: float = 0.0
    ablation: Literal["exclude", "zero_target"] = "exclude"
    penalty_weight: float = 1.0
    stop: HeldOutNeurons | None = None

    def __post_init__(self):
        for field, allowed in (
            ("stitch", ("mean", "sum")),
            ("ensemble", ("movies", "gradients")),
            ("ablation", ("exclude", "zero_target")),
        ):
            value = getattr(self, field)
            if value not in allowed:
                raise NeuroreconError(f"recipe {self.name}, {field}: expected one of {allowed}, found {value!r}")
        if not self.losses:
            raise NeuroreconError(f"recipe {self.name}, losses: expected at least one response loss, found none")
        for field in ("losses", "priors"):
            terms = getattr(self, field)
            for name, term in terms.items():
                if not (isinstance(term, tuple) and len(term) == 2 and callable(term[1]) and math.isfinite(term[0])):
                    raise NeuroreconError(
                        f"recipe {self.name}, {field}, {name}: expected (weight, function), found {term!r}"
                    )
            object.__setattr__(self, field, dict(terms))  # a copy: the recipe can't change from outside
        taken = [*TRACE_NAMES, *self.losses, *self.priors]
        for name in {name for name in taken if taken.count(name) > 1}:
            raise NeuroreconError(
                f"recipe {self.name}: the name {name!r} is taken in the trace; give each loss and prior one of its own"
            )
        if self.num_steps < 1:
            raise NeuroreconError(f"recipe {self.name}, num_steps: expected at least 1, found {self.num_steps}")
        try:
            hash(self)
        except TypeError as error:
            raise NeuroreconError(
                f"recipe {self.name}: expected hashable functions, found one that isn't ({error})"
            ) from None

    def _parts(self) -> tuple:
        parts = (getattr(self, field.name) for field in dataclasses.fields(self))
        return tuple(tuple(part.items()) if isinstance(part, dict) else part for part in parts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self._parts() == other._parts()

    def __hash__(self) -> int:
        return hash(self._parts())

    def made_for(self, shape: tuple[int, int, int], dtype: Any) -> "Recipe":
        """The recipe with its parametrisation made for movies (time, height, width), so that its arrays are leaves."""
        return self.replace(parametrisation=Partial(_as_made, _made(self.parametrisation, shape, jnp.dtype(dtype))))

    def tree_flatten(self) -> tuple[tuple, tuple]:
        terms = (tuple(self.losses.items()), tuple(self.priors.items()))
        parts = (*terms, self.parametrisation, self.update, self.plan)
        leaves, tree = jax.tree.flatten(parts)
        held = [isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves]
        arrays = tuple(leaf for leaf, is_array in zip(leaves, held) if is_array)
        others = tuple(_ARRAY if is_array else leaf for leaf, is_array in zip(leaves, held))
        rest = tuple((f.name, getattr(self, f.name)) for f in dataclasses.fields(self) if f.name not in _WITH_ARRAYS)
        return arrays, (tree, others, rest)

    @classmethod
    def tree_unflatten(cls, structure: tuple, arrays: Iterable[Any]) -> "Recipe":
        tree, others, rest = structure
        each = iter(arrays)
        leaves = [next(each) if other is _ARRAY else other for other in others]
        losses, priors, parametrisation, update, plan = jax.tree.unflatten(tree, leaves)
        parts = {"parametrisation": parametrisation, "update": update, "plan": plan}
        return cls(losses=dict(losses), priors=dict(priors), **parts, **dict(rest))

    def replace(self, **changes: Any) -> "Recipe":
        """A copy with some parts changed.

        Raises:
          NeuroreconError: a name is not a part of a recipe.
        """
        known = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
                raise NeuroreconError(f"recipe {self.name}: no part {name!r}; the nearest is {near!r}")
        return dataclasses.replace(self, **changes)


def _as_made(
    made: parametrisations.Parametrisation, shape: tuple[int, int, int], dtype: Any
) -> parametrisations.Parametrisation:
    del shape, dtype  # made for them
    return made


@functools.lru_cache(maxsize=16)
def _made(make: MakeParametrisation, shape: tuple[int, int, int], dtype: Any) -> parametrisations.Parametrisation:
    """Cached: functions that a user's own parametrisation makes anew would else be compiled anew."""
    return make(shape, dtype)


def published_windows(encoder: Any, num_frames: int, key: jax.Array) -> windows.WindowPlan:
    """Windows of two stacks every 8 frames and one flush with the end (35 for 300 frames)."""
    del key
    return windows.published_plan(num_frames, window_frames=encoder.window_frames, frame_step=encoder.frame_step)


TILE_FRAMES = 400  # a movie no longer is one window of an encoder of any length


def economical_windows(
    encoder: Any, num_frames: int, key: jax.Array, *, tile_frames: int = TILE_FRAMES
) -> windows.WindowPlan:
    """Every frame at most once a step.

    Encoders of any length see the movie whole, one of its interleaved streams drawn anew each step; encoders of a fixed
    window see windows side by side, shifted anew each step.
    """
    if encoder.time_invariant:
        plan = windows.tiled_plan(
            num_frames,
            tile_frames=tile_frames,
            frame_step=encoder.frame_step,
            context_frames=encoder.warmup_frames * encoder.frame_step,
        )
        return windows.one_stream(plan, jax.random.randint(key, (), 0, encoder.frame_step))
    span = encoder.window_frames * encoder.frame_step
    shift = jax.random.randint(key, (), 0, span)
    return windows.shifted_plan(num_frames, shift, window_frames=encoder.window_frames, frame_step=encoder.frame_step)


@functools.cache
def _published_update(learning_rate: float) -> Callable[[int], optax.GradientTransformation]:
    """Cached, as are those below, so that equal recipes are equal."""

    def update(num_steps: int) -> optax.GradientTransformation:
        del num_steps  # the published rate does not decay
        return optax.chain(optax.clip(1.0), updates.published_momentum(learning_rate))

    return update


def published_recipe(*, learning_rate: float = 1000.0, **changes: Any) -> Recipe:
    """The recipe of Bauer, Margrie & Clopath (eLife 2026), quirks included.

    Args:
      learning_rate: of the momentum rule.
      **changes: any part of `Recipe`: `ensemble` ("movies" as published, or "gradients"), `smoothing` (0.5; 0 for
        none), `ablation` ("exclude", or "zero_target" as published), `num_steps` (999), ... The published controls
        need no part of their own: leave `update_mask` out, or give the strict one (alpha >= 1); give predicted
        responses.

    Raises:
      NeuroreconError: a change is not a part of a recipe or has an unknown value.
    """
    recipe = Recipe(
        name="published",
        losses={"poisson": (1.0, response_losses.poisson)},
        parametrisation=parametrisations.direct,
        update=_published_update(float(learning_rate)),
        num_steps=999,
        plan=published_windows,
        mean_loss=True,
        normalise_windows=True,
        stitch="mean",
        ensemble="movies",
        canvas=True,
        smoothing=0.5,
    )
    return recipe.replace(**changes)


class _Value(NamedTuple):
    """An array that is compared by its values."""

    data: bytes
    shape: tuple[int, ...]

    @classmethod
    def of(cls, array: Any) -> "_Value":
        array = np.asarray(array, np.float64)
        return cls(array.tobytes(), array.shape)

    def array(self) -> np.ndarray:
        return np.frombuffer(self.data).reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class Whitened:
    """A Gaussian movie prior's whitened cosine basis; equal to another of the same function and mean.

    Attributes:
      power: shape (time, height, width) -> prior variance of each cosine coefficient.
      mean: prior mean in grey values: a number, (height, width) or (time, height, width).
      num_frames: of the movie, in arrays that may hold more, see `parametrisations.padded_whitened_cosine`; None: the
        arrays hold the movie and no more.
    """

    power: Callable[[tuple[int, int, int]], np.ndarray]
    mean: _Value
    num_frames: int | None = None

    def __call__(self, shape: tuple[int, int, int], dtype: Any) -> parametrisations.Parametrisation:
        length = shape[0]
        shape = (length if self.num_frames is None else self.num_frames, *shape[1:])
        variance = np.asarray(self.power(shape))
        if variance.shape != shape or not (np.isfinite(variance) & (variance > 0)).all():
            raise NeuroreconError(
                f"recipe default, power: expected positive numbers of the movie's shape {shape}, "
                f"found {variance.shape} from {variance.min():.3g} to {variance.max():.3g}"
            )
        offset = self.mean.array()
        if offset.shape not in ((), shape[1:], shape) or not np.isfinite(offset).all():
            raise NeuroreconError(
                f"recipe default, prior_mean: expected finite values, one or of shape {shape[1:]} or {shape}, "
                f"found {offset.shape}"
            )
        if self.num_frames is not None:
            return parametrisations.padded_whitened_cosine(variance, length, mean=offset, dtype=dtype)
        return parametrisations.whitened_cosine(jnp.asarray(variance, dtype), mean=offset, dtype=dtype)


@functools.cache
def _adam(learning_rate: float) -> Callable[[int], optax.GradientTransformation]:
    return lambda num_steps: updates.adam(learning_rate, num_steps=num_steps)


def adam_at(learning_rate: float) -> Callable[[int], optax.GradientTransformation]:
    """An `update` whose rate is an argument of the compiled descent: recipes that differ in it compile nothing."""
    return Partial(_adam_at, np.asarray(learning_rate, np.float32))


def _adam_at(learning_rate: jax.Array, num_steps: int) -> optax.GradientTransformation:
    return updates.adam(learning_rate, num_steps=num_steps)


def default_recipe(
    *,
    likelihood_weight: float = 0.1,
    learning_rate: float = 0.3,
    power: Callable[[tuple[int, int, int]], np.ndarray] = movie_priors.natural_power,
    prior_mean: np.ndarray | float = parametrisations.GREY,
    **changes: Any,
) -> Recipe:
    """Maximum a posteriori under a Gaussian movie prior, descended in its whitened basis by Adam.

    The movie prior does on purpose what the published recipe's averaging, mask and smoothing do in passing. Encoders
    are combined within one descent.

    Args:
      likelihood_weight: weight of the summed response loss against the prior. Below 1 since responses of one neuron are
        correlated over neighbouring frames and encoders are wrong in ways that neurons share.
      learning_rate: of Adam, in prior standard deviations.
      power: shape (time, height, width) -> prior variance of each cosine coefficient, an array of that shape: see
        `priors` (the 1/f spectrum of natural movies, or one measured on training movies).
      prior_mean: prior mean in grey values: a number, (height, width) or (time, height, width).
      **changes: any part of `Recipe`.

    Raises:
      NeuroreconError: a change is not a part of a recipe or has an unknown value.
    """
    if not callable(power):
        raise NeuroreconError(
            f"recipe default, power: expected a function of the movie's shape, found {type(power).__name__}"
        )
    recipe = Recipe(
        name="default",
        losses={"poisson": (likelihood_weight, response_losses.poisson)},
        parametrisation=Whitened(power, _Value.of(prior_mean)),
        update=_adam(float(learning_rate)),
        num_steps=80,
        plan=economical_windows,
    )
    return recipe.replace(**changes)
