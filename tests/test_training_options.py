"""What training can do beside the plain loop: pieces of batches, bfloat16, mixing, constant averaging, frozen cores."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neurorecon.encoders import DwiseNeuro, LinearNonlinear
from neurorecon.encoders.canvas import make_inputs
from neurorecon.errors import NeuroreconError
from neurorecon.training import step
from neurorecon.training.new_animals import encoder_for, with_cores
from neurorecon.training.objective import box_area, cut_inputs, mix_inputs, mixup, moving_average, published_boxes
from neurorecon.training.trainer import TrainingSettings, draw_batches, initial_state, train, train_step
from tests.recording_examples import one_line
from tests.test_training import ENCODER, SETTINGS, SHAPE, animal, same
from tests.tiny_run import random_variables

LINEAR = LinearNonlinear(num_neurons=(5, 3), canvas=SHAPE, window_frames=10, frame_step=2, rank=1, num_taps=3)
DEEP = DwiseNeuro(
    num_neurons=(5, 3), canvas=(8, 8), screen=SHAPE, window_frames=4, core_features=(4,), spatial_strides=(2,),
    temporal_kernel=3, expansion_ratio=2, se_reduce_ratio=2, cortex_features=(8,),
)  # fmt: skip


@pytest.fixture(scope="module")
def animals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("animals")
    return [animal(folder, "five", 5, 0), animal(folder, "three", 3, 1)]


def changed(**changes):
    return dataclasses.replace(SETTINGS, **{"batch_size": 4, **changes})


def prepared_step(encoder, animals, settings):
    """The gradient's function with all that it takes: of one model, on one animal."""
    recordings = animals[:1]
    encoder = encoder.clone(num_neurons=(5,))
    state = initial_state(encoder, recordings, settings, num_models=1, key=jax.random.key(0))
    windows = [r.windows("train", encoder.window_frames, encoder.frame_step) for r in recordings]
    batches = draw_batches(encoder, recordings, windows, settings, num_models=1, seed=0, step=5)
    variables, batch = jax.tree.map(lambda x: x[0], (state.variables, batches))
    return step._gradient(encoder, settings, [np.ones(5, np.float32)]), (variables, batch, jax.random.key(1))


def gradient(encoder, animals, settings):
    """Loss, batch statistics and gradient."""
    function, arguments = prepared_step(encoder, animals, settings)
    return jax.tree.map(np.asarray, jax.jit(function)(*arguments))


def test_pieces_of_a_batch_give_the_gradient_of_the_whole(animals):
    loss, _, whole = gradient(LINEAR, animals, changed())
    of_cut, _, cut = gradient(LINEAR, animals, changed(accumulate=4))
    np.testing.assert_allclose(of_cut, loss, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(cut), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert max(np.abs(x).max() for x in jax.tree.leaves(whole)) > 1e-3


def test_batch_norm_sees_the_pieces_one_by_one(animals):
    of_cut, cut, _ = gradient(ENCODER, animals, changed(accumulate=2))
    loss, whole, _ = gradient(ENCODER, animals, changed())
    assert abs(of_cut - loss) < 0.2
    # Two moves towards nearly the same mean, in place of one: 1 - 0.95^2 against 0.05.
    ratio = cut["norm0"]["mean"] / whole["norm0"]["mean"]
    np.testing.assert_allclose(ratio, 1.95, atol=0.2)


@pytest.mark.parametrize("encoder", [ENCODER, DEEP, LINEAR], ids=["factorized", "dwiseneuro", "linear_nonlinear"])
def test_bfloat16_activations_leave_gradients_and_statistics_in_float32(animals, encoder):
    if encoder is not DEEP:
        # A large mean with small changes, as pupils have: lost if cast before it is normalised.
        encoder = encoder.clone(behaviour_mean=(300.0,) * 4, behaviour_std=(0.5,) * 4)
    loss, statistics, found = gradient(encoder, animals, changed(precision="bfloat16"))
    of_full, _, full = gradient(encoder, animals, changed())
    np.testing.assert_allclose(loss, of_full, rtol=0.05, atol=0.05)
    assert loss != of_full
    assert all(x.dtype in (np.float32, np.int32) for x in jax.tree.leaves((loss, statistics, found)))
    a, b = (np.concatenate([x.ravel() for x in jax.tree.leaves(g)]) for g in (found, full))
    assert a @ b / np.sqrt((a @ a) * (b @ b)) > 0.95
    # Where the work is, everything is bfloat16; and nothing is where it was not asked for.
    half, plain = (count_products(encoder, animals, changed(precision=p)) for p in ("bfloat16", "float32"))
    assert half["bfloat16"] >= 3 and half["float32"] == 0
    assert plain["bfloat16"] == 0 and plain["float32"] >= 3


def count_products(encoder, animals, settings):
    """How many matrix products and convolutions of activations, of each type, one gradient takes."""
    function, arguments = prepared_step(encoder, animals, settings)
    counts = {"bfloat16": 0, "float32": 0}

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name in ("dot_general", "conv_general_dilated"):
                largest = max((v.aval for v in equation.invars), key=lambda aval: aval.size)
                counts[largest.dtype.name] += largest.size > 100  # not those of kernels and moments alone
            for value in equation.params.values():
                for inner in value if isinstance(value, (list, tuple)) else [value]:
                    if hasattr(inner, "jaxpr"):
                        visit(inner.jaxpr)
                    elif hasattr(inner, "eqns"):
                        visit(inner)

    visit(jax.make_jaxpr(function)(*arguments).jaxpr)
    return counts


def test_published_cutmix_on_the_device_is_that_of_two_samples(animals):
    rng = np.random.default_rng(0)
    stimulus, behaviour = rng.integers(0, 255, (6, 3, *SHAPE)).astype(np.float32), rng.normal(size=(6, 3, 4))
    responses = rng.normal(1, 1, (6, 3, 2)).astype(np.float32)
    inputs = np.asarray(make_inputs(stimulus, behaviour.astype(np.float32), (8, 8)))
    boxes, mixed = published_boxes(responses, np.random.default_rng(1), 0.7, (8, 8))
    found = np.asarray(cut_inputs(jnp.asarray(inputs), jnp.asarray(boxes)))
    clipped, moved = np.maximum(responses, 0), 0
    for k, box in enumerate(boxes):
        box = tuple(int(x) for x in box)
        pair = mix_inputs(inputs[k], inputs[k - 1], clipped[k], clipped[k - 1], box)
        np.testing.assert_array_equal(found[k], pair[0])
        np.testing.assert_allclose(mixed[k], pair[1], rtol=1e-6)
        moved += box_area(box, 8, 8) > 0
    assert 2 <= moved < 6
    still = published_boxes(responses, np.random.default_rng(1), 0.0, (8, 8))
    assert not still[0].any() and np.array_equal(still[1], clipped)


def test_published_mixing_and_averaging_as_options(animals):
    """Batches carry boxes, the step compiles once, and the decay is constant from the first step on."""
    settings = changed(cutmix_variant="published", cutmix_probability=0.5, ema_warmup=False, ema_decay=0.9, num_steps=3)
    encoder = ENCODER.clone(num_neurons=(5,))
    windows = [r.windows("train", 10, 2) for r in animals[:1]]
    (batch,) = draw_batches(encoder, animals[:1], windows, settings, num_models=2, seed=0, step=0)
    assert len(batch) == 4 and batch[3].shape == (2, 4, 4)
    start = initial_state(encoder, animals[:1], settings, num_models=1, key=jax.random.key(0))
    expected, sizes = jax.tree.map(np.array, start.ema), []

    def watch(state, record):
        nonlocal expected
        sizes.append(train_step._cache_size())
        expected = moving_average(expected, jax.tree.map(np.array, state.variables), 0.9)
        for a, b in zip(jax.tree.leaves(state.ema), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)

    train(encoder, animals[:1], settings, num_models=1, seed=0, state=start, on_step=watch)
    assert len(sizes) == 3 and len(set(sizes)) == 1


def test_mixup_blends_windows_and_their_responses(animals):
    rng = np.random.default_rng(0)
    stimulus = rng.integers(0, 256, (3, 4, 5, 6)).astype(np.uint8)
    responses, behaviour = rng.normal(size=(3, 4, 2)).astype(np.float32), rng.normal(size=(3, 4, 4)).astype(np.float32)
    mixed = mixup(stimulus, responses, behaviour, np.random.default_rng(3), 1.0)
    assert [m.dtype for m in mixed] == [np.uint8, np.float32, np.float32]
    draws = np.random.default_rng(3)
    draws.random()
    share = draws.beta(0.2, 0.2)
    for found, given in zip(mixed, (stimulus, responses, behaviour)):
        expected = (1 - share) * given + share * np.roll(given, 1, axis=0).astype(np.float64)
        np.testing.assert_allclose(found, expected, atol=0.5 if given.dtype == np.uint8 else 1e-5)
    assert mixup(stimulus, responses, behaviour, np.random.default_rng(0), 0.0)[0] is stimulus
    # Only a batch that CutMix left alone is blended, and what CutMix draws doesn't change.
    windows = [r.windows("train", 10, 2) for r in animals]

    def draw(**changes):
        return draw_batches(ENCODER, animals, windows, changed(**changes), num_models=20, seed=0, step=0)[0]

    plain, cut, both = draw(), draw(cutmix_probability=0.5), draw(cutmix_probability=0.5, mixup_probability=1.0)
    was_cut, kept = (np.array([not np.array_equal(a, b) for a, b in zip(cut[1], other[1])]) for other in (plain, both))
    kept = ~kept
    assert 4 < was_cut.sum() < 16 and kept[was_cut].all()
    assert kept[~was_cut].mean() < 0.5  # shares near 0 change nothing


@pytest.mark.parametrize("name", ["factorized", "dwiseneuro"])
def test_a_new_animal_is_added_to_a_core_that_stays_bit_for_bit(animals, name):
    trained = {"factorized": ENCODER, "dwiseneuro": DEEP}[name].clone(num_neurons=(5,))
    settings = dataclasses.replace(SETTINGS, frozen_core=True, optimiser="muon")
    first = initial_state(trained, animals[:1], settings, num_models=2, key=jax.random.key(0)).variables
    # As after a training: no number is where it started.
    rng = np.random.default_rng(0)
    first = jax.tree.map(lambda x: (x + rng.uniform(0.1, 0.3, x.shape)).astype(x.dtype), first)
    cores = [jax.tree.map(lambda x, m=m: np.asarray(x[m]), first) for m in range(2)]
    encoder = encoder_for(trained, animals[1:])
    assert encoder.num_neurons == (3,)
    start = initial_state(encoder, animals[1:], settings, num_models=3, key=jax.random.key(1))
    losses = []
    state = with_cores(start, cores, settings)
    before = jax.tree.map(np.array, state.variables)
    state = train(
        encoder, animals[1:], settings, num_models=3, seed=1, state=state, parallel=True,
        on_step=lambda _, r: losses.append(r["loss"]),
    )  # fmt: skip
    for variables in (state.variables, state.ema, state.best):
        for part, tree in variables["params"].items():
            mine = part.startswith(("readout", "behaviour", "log_scale"))
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
                if mine:
                    continue
                for model in range(3):
                    kept = cores[model % 2]["params"][part]
                    for entry in path:
                        kept = kept[entry.key]
                    assert np.asarray(leaf[model]).tobytes() == np.asarray(kept).tobytes(), (part, path)
        for model in range(3):
            assert same(
                jax.tree.map(lambda x, m=model: x[m], variables["batch_stats"]), cores[model % 2]["batch_stats"]
            )
    readout = "weights" if name == "factorized" else "conv"
    assert not np.array_equal(state.variables["params"]["readout0"][readout], before["params"]["readout0"][readout])
    losses = np.array(losses)
    assert (losses[-6:].mean(0) < losses[:3].mean(0)).all()


def test_cores_that_cannot_be_taken_are_one_line():
    settings = changed(frozen_core=True)

    def begun(encoder):
        return step.state_of(jax.tree.map(lambda x: x[None], random_variables(encoder, 0)), settings)

    start = begun(ENCODER)
    core = jax.tree.map(lambda x: x[0], start.variables)
    with pytest.raises(NeuroreconError) as error:
        with_cores(start, [core], changed())
    one_line(error, "frozen_core")
    with pytest.raises(NeuroreconError) as error:
        with_cores(start, [], settings)
    one_line(error, "at least one")
    wide = begun(ENCODER.clone(features=(4,)))
    with pytest.raises(NeuroreconError) as error:
        with_cores(wide, [core], settings)
    one_line(error, "shape")
    linear = begun(LINEAR)
    with pytest.raises(NeuroreconError) as error:
        with_cores(linear, [jax.tree.map(lambda x: x[0], linear.variables)], settings)
    one_line(error, "no core")


@pytest.mark.parametrize(
    "change",
    [
        {"accumulate": 3},
        {"precision": "float16"},
        {"cutmix_variant": "new"},
        {"mixup_probability": 2.0},
        {"shard": "x"},
    ],
)
def test_options_out_of_range_are_one_line(animals, change):
    with pytest.raises(NeuroreconError, match=next(iter(change))):
        train(ENCODER, animals, TrainingSettings(**{**vars(changed()), **change}), num_models=1, seed=0)
