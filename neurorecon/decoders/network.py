"""The network that corrects the linear decoder's movie, from that movie and the neurons' responses."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from neurorecon.encoders.gaussian_readout import space_to_depth


def depth_to_space(x: jax.Array, patch: int) -> jax.Array:
    """(..., h, w, patch * patch) -> (..., h * patch, w * patch): undoes `space_to_depth` of one channel."""
    *lead, rows, columns, _ = x.shape
    x = jnp.moveaxis(x.reshape(*lead, rows, columns, patch, patch), -2, -3)
    return x.reshape(*lead, rows * patch, columns * patch)


class Splat(nn.Module):
    """Puts each neuron's activity at its place: the transpose of a Gaussian readout (Lurz et al. 2021).

    Activity (trial, time, neuron, lag) -> maps (trial, time, h, w, maps). A few temporal filters are shared by all
    neurons, the weights of each, its place and the width of its Gaussian are its own.
    """

    cells: tuple[int, int]
    maps: int
    num_filters: int = 2
    dropout: float = 0.0

    @nn.compact
    def __call__(self, lagged: jax.Array, train: bool) -> jax.Array:
        neurons, lags = lagged.shape[-2:]
        normal = nn.initializers.normal
        time = self.param("time", normal(lags**-0.5), (lags, self.num_filters))
        weights = self.param("weights", normal(self.num_filters**-0.5), (neurons, self.num_filters, self.maps))
        position = self.param("position", nn.initializers.zeros_init(), (neurons, 2))  # cells
        log_sigma = self.param("log_sigma", nn.initializers.constant(0.4), (neurons,))
        gain = self.param("gain", nn.initializers.ones_init(), ())
        variance = jnp.exp(2 * jnp.clip(log_sigma, -1.0, 3.0))[:, None]

        def along(length: int, place: jax.Array) -> jax.Array:
            return jax.nn.softmax(-((jnp.arange(length) - place[:, None]) ** 2) / (2 * variance), axis=-1)

        rows, columns = along(self.cells[0], position[:, 0]), along(self.cells[1], position[:, 1])
        places = (rows[:, :, None] * columns[:, None, :]).reshape(neurons, -1)
        activity = jnp.einsum("btnl,lf->btnf", lagged, time)
        activity = jnp.einsum("btnf,nfc->btnc", activity, weights)
        # A neuron is left out of a whole trial, so that no single one is relied on.
        activity = nn.Dropout(self.dropout, broadcast_dims=(1, 3), deterministic=not train)(activity)
        maps = jnp.einsum("btnc,nx->btxc", activity, places)
        scale = gain * jax.lax.rsqrt(jnp.mean(jnp.square(places.sum(0))) + 1e-6)  # about 1, however many neurons
        return (maps * scale).reshape(*maps.shape[:2], *self.cells, self.maps)


class Block(nn.Module):
    """A spatial and a temporal convolution beside a shortcut, x (trial, time, h, w, channel)."""

    dilation: int
    temporal_taps: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        y = nn.LayerNorm(use_bias=False)(x)
        dilation = (self.dilation, self.dilation)
        y = nn.silu(nn.Conv(channels, (3, 3), kernel_dilation=dilation, name="spatial_taps")(y))
        kernel = self.param(
            "kernel", nn.initializers.normal((self.temporal_taps * channels) ** -0.5),
            (self.temporal_taps, channels, channels),
        )  # fmt: skip
        half = self.temporal_taps // 2
        padded = jnp.pad(y, [(0, 0), (half, half), (0, 0), (0, 0), (0, 0)])
        # Products of dense matrices: on a CPU several times as quick as a convolution over time.
        return x + sum(padded[:, k : k + x.shape[1]] @ kernel[k] for k in range(self.temporal_taps))


class Correction(nn.Module):
    """(linear movie, activity) -> what to add to the movie; 0 before training.

    Attributes:
      cells: rows and columns of cells of `patch` x `patch` pixels.
      num_lags: of the activity, in steps.
      patch, features, maps, dilations, temporal_taps, dropout: see `DecoderSettings`.
    """

    cells: tuple[int, int]
    num_lags: int
    patch: int
    features: int
    maps: int
    dilations: tuple[int, ...]
    temporal_taps: int
    dropout: float

    @nn.compact
    def __call__(self, linear: jax.Array, activity: jax.Array, flipped: jax.Array, *, train: bool = False) -> jax.Array:
        """Args:
          linear: (trial, time, rows, columns) in standard deviations of the movies, mirrored where `flipped`.
          activity: (trial, time + num_lags - 1, neuron), features of these frames and the next; 0 beyond the end.
          flipped: (trial,) bool, mirrored from left to right.
          train: with dropout.

        Returns:
          As `linear`.
        """
        time = linear.shape[1]
        lagged = jnp.stack([activity[:, k : k + time] for k in range(self.num_lags)], -1)
        maps = Splat(self.cells, self.maps, dropout=self.dropout, name="splat")(lagged, train)
        maps = jnp.where(flipped[:, None, None, None, None], maps[..., ::-1, :], maps)
        x = jnp.concatenate([space_to_depth(linear[..., None], self.patch), maps], -1)
        x = nn.Dense(self.features, name="mix")(x)
        for k, dilation in enumerate(self.dilations):
            x = Block(dilation, self.temporal_taps, name=f"block{k}")(x)
        x = nn.Dense(self.patch**2, kernel_init=nn.initializers.zeros_init(), name="pixels")(x)
        return depth_to_space(x, self.patch)[..., : linear.shape[2], : linear.shape[3]]
