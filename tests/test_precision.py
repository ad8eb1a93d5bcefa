"""Encoders in bfloat16: what is narrow, what is not, and the movies that come out."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neurorecon.encoders import predict_trial
from neurorecon.encoders.canvas import make_inputs
from neurorecon.encoders.precision import in_precision, predict
from neurorecon.errors import NeuroreconError
from neurorecon.reconstruction import default_recipe, published_recipe, reconstruct
from tests.toy_encoders import NUM_FRAMES, SCREEN, TOYS, toy, toy_clips

PRODUCT = re.compile(r":(\w+)\[([\d,]*)\] = (?:dot_general|conv_general_dilated)")
IN_THE_CORE = {"linear_nonlinear": 0, "factorized": 2, "dwiseneuro": 9}  # products; four in each of two blocks


def clip(encoder, variables):
    """A smooth movie, behaviour with a large mean and small changes, and the responses that the encoder predicts."""
    rng = np.random.default_rng(0)
    rough = np.cumsum(rng.normal(size=(NUM_FRAMES, *SCREEN)), axis=0)
    movie = (127.5 + 50 * (rough - rough.mean()) / rough.std()).clip(0, 255).astype(np.float32)
    behaviour = (300 + 0.5 * rng.normal(size=(NUM_FRAMES, 4))).astype(np.float32)
    span = encoder.window_frames
    inputs = make_inputs(movie[: NUM_FRAMES // span * span], behaviour[: NUM_FRAMES // span * span], encoder.canvas)
    inputs = inputs.reshape(-1, span, *inputs.shape[1:])
    expected = predict_trial(encoder, variables, movie, behaviour)
    return movie, behaviour, inputs, np.asarray(expected, np.float32)


def standardised(name, seed=0):
    encoder, variables = toy(name, seed)
    if name == "dwiseneuro":  # whose first norm takes raw inputs
        kernel, norm = variables["params"]["stem"]["conv"], variables["batch_stats"]["stem"]["norm"]
        norm["mean"], norm["var"] = jnp.asarray([127.5, *[300.0] * 4]) @ kernel, (50 * kernel[0]) ** 2 + 1
        return encoder, variables
    return encoder.clone(behaviour_mean=(300.0,) * 4, behaviour_std=(0.5,) * 4), variables


@pytest.mark.parametrize("name", TOYS)
def test_narrow_between_layers_alone(name):
    encoder, variables = standardised(name)
    *_, inputs, _ = clip(encoder, variables)
    found, products = {}, {}
    for precision in ("float32", "bfloat16"):
        member = in_precision(encoder, variables, precision)

        def seen(inputs, member=member, precision=precision):
            return predict(*member, inputs, readout=0, precision=precision)

        found[precision] = seen(inputs)
        assert found[precision].dtype == np.float32
        products[precision] = [m.group(1) for m in PRODUCT.finditer(str(jax.make_jaxpr(seen)(inputs)))]
        gradient = jax.grad(lambda inputs, seen=seen: jnp.sum(seen(inputs)))(inputs)
        assert gradient.dtype == np.float32 and np.isfinite(gradient).all()
    assert products["float32"] and set(products["float32"]) == {"f32"}
    assert len(products["bfloat16"]) == len(products["float32"])
    assert products["bfloat16"].count("bf16") >= IN_THE_CORE[name]
    a, b = found.values()
    assert 0 < np.abs(a - b).max() < 0.05 * np.ptp(a) + 0.02 * np.abs(a).max()


@pytest.mark.parametrize("name", TOYS)
def test_the_same_movie(name):
    """Correlation with the true movie changes by less than 0.005, and the movies are each other's."""
    encoder, variables = standardised(name)
    movie, behaviour, _, responses = clip(encoder, variables)
    options = {"recipe": default_recipe(likelihood_weight=1.0), "key": jax.random.key(0), "num_steps": 30}
    wide, half = (
        reconstruct([(encoder, variables)], responses, behaviour, precision=precision, **options).movie
        for precision in ("float32", "bfloat16")
    )
    of_wide, of_half = (np.corrcoef(found.ravel(), movie.ravel())[0, 1] for found in (wide, half))
    assert of_wide > 0.1 and (wide != half).any()
    assert np.abs(of_wide - of_half) < 0.005
    assert np.corrcoef(wide.ravel(), half.ravel())[0, 1] > 0.99


def test_an_unknown_precision_is_one_line():
    responses, behaviour = (values[0] for values in toy_clips())
    with pytest.raises(NeuroreconError, match="precision: expected one of 'float32', 'bfloat16', found 'float16'"):
        reconstruct(
            [toy("dwiseneuro")],
            responses,
            behaviour,
            recipe=published_recipe(),
            key=jax.random.key(0),
            precision="float16",
        )
