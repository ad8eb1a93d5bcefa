"""The linear-nonlinear encoder against a direct convolution, and its start at the spike-triggered average."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from neurorecon.encoders import LinearNonlinear, load_encoder, save_encoder
from neurorecon.encoders.linear_nonlinear import gaussian_envelope
from neurorecon.errors import NeuroreconError
from neurorecon.recordings import Trial, write_sensorium
from neurorecon.recordings.prepared import prepare
from neurorecon.recordings.sensorium import open_recording
from neurorecon.training.initialise import start_from_data
from neurorecon.training.spike_triggered import START_BIAS, separable_filters, spike_triggered_average
from neurorecon.training.trainer import TrainingSettings, initial_state, train

SMALL = LinearNonlinear(num_neurons=(3, 2), canvas=(4, 5), window_frames=9, rank=2, num_taps=3, envelope=1.5)
CENTRES = np.array([[2.0, 3.0], [5.0, 1.0], [3.0, 6.0]])
KERNEL = np.array([0.0, 0.5, 1.0, 0.3, -0.2])
SHAPE = (7, 8)


def inputs(window: int, time: int, canvas: tuple[int, int]) -> jax.Array:
    movie = np.random.default_rng(0).uniform(0, 255, (window, time, *canvas, 5))
    return jnp.asarray(movie, jnp.float32)


def random_variables(encoder: LinearNonlinear):
    """Parameters with no value left at its neutral initial one."""
    shapes = encoder.init(jax.random.key(0), inputs(1, encoder.window_frames, encoder.canvas))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), jnp.float32), shapes)


@pytest.fixture(scope="module")
def retina(tmp_path_factory):
    """Three neurons with a Gaussian receptive field, one time course and an exponential nonlinearity; white noise."""
    rng = np.random.default_rng(3)
    fields = np.asarray(gaussian_envelope(jnp.asarray(CENTRES), 0.8, *SHAPE))
    fields = 0.9 * fields / np.linalg.norm(fields, axis=0) / np.linalg.norm(KERNEL)
    trials = []
    for number in range(5):
        frames = 1500 if number < 4 else 400
        movie = rng.choice([0.0, 255.0], (frames, *SHAPE)).astype(np.float32)
        seen = (movie.reshape(frames, -1) - 127.5) / 127.5 @ fields
        drive = np.stack([np.convolve(s, KERNEL)[:frames] for s in seen.T], axis=1)
        spikes = rng.poisson(0.3 * np.exp(drive)).astype(np.float32)
        behaviour = np.zeros((frames, 4), np.float32)
        tier = "train" if number < 4 else "oracle"
        trials.append(Trial(str(number), "retina", tier, movie, spikes, behaviour))
    path = tmp_path_factory.mktemp("recordings") / "retina"
    write_sensorium(path, trials)
    return prepare(open_recording(path), None), fields


def encoder_for_retina(**changes) -> LinearNonlinear:
    fields = {"window_frames": 40, "rank": 1, "num_taps": 5, "envelope": 1.5, "stimulus_std": 127.5}
    return LinearNonlinear(num_neurons=(3,), canvas=SHAPE, **{**fields, **changes})


@pytest.mark.parametrize("envelope", [0.0, 1.5])
def test_is_a_causal_convolution_then_a_softplus(envelope: float) -> None:
    encoder = SMALL.clone(envelope=envelope)
    variables = random_variables(encoder)
    given = inputs(2, 9, SMALL.canvas)
    params = jax.tree.map(np.asarray, variables["params"])
    look = params["readout1"]
    space = look["space"].reshape(4, 5, 2, 2).copy()
    if envelope:
        rows, columns = np.mgrid[:4, :5]
        for n, (row, column) in enumerate(look["centre"]):
            square = (rows - row) ** 2 + (columns - column) ** 2
            space[:, :, n] *= np.exp(-square / (2 * envelope**2))[..., None]
    movie = (np.asarray(given[..., 0]) - 127.5) / 60.0
    drive = np.zeros((2, 9, 2))
    for t in range(9):
        for tap in range(min(3, t + 1)):  # before the window: as if grey
            filters = np.einsum("hwnr,nr->hwn", space, look["time"][tap])
            drive[:, t] += np.einsum("bhw,hwn->bn", movie[:, t - tap], filters)
    behave = params["behaviour1"]
    hidden = np.tanh(np.asarray(given[..., 1:]).mean((2, 3)) @ behave["hidden"]["kernel"] + behave["hidden"]["bias"])
    drive += look["bias"] + hidden @ behave["offset"]["kernel"]
    gain = np.tanh(hidden @ behave["gain"]["kernel"])
    expected = np.exp(params["log_scale1"] + gain) * np.logaddexp(0, drive)
    np.testing.assert_allclose(encoder.apply(variables, given, readout=1), expected, rtol=2e-4, atol=1e-5)


def test_warm_up_is_what_the_filters_reach_back() -> None:
    variables = random_variables(SMALL)
    given = inputs(1, 9, SMALL.canvas)
    whole = SMALL.apply(variables, given)
    late = SMALL.apply(variables, given[:, 4:])
    assert SMALL.warmup_frames == 2
    np.testing.assert_allclose(late[:, 2:], whole[:, 6:], rtol=1e-5)
    assert not np.allclose(late[:, :2], whole[:, 4:6], rtol=1e-3)


def test_without_an_envelope_there_is_no_centre() -> None:
    names = SMALL.clone(envelope=0.0).init(jax.random.key(0), inputs(1, 9, SMALL.canvas))["params"]["readout0"]
    assert sorted(names) == ["bias", "space", "time"]


def test_checkpoint_keeps_envelope(tmp_path) -> None:
    variables = random_variables(SMALL)
    save_encoder(tmp_path / "encoder", SMALL, variables)
    encoder, loaded = load_encoder(tmp_path / "encoder")
    assert encoder == SMALL
    given = inputs(1, 9, SMALL.canvas)
    np.testing.assert_array_equal(encoder.apply(loaded, given), SMALL.apply(variables, given))


def test_average_recovers_the_filters(retina) -> None:
    recording, fields = retina
    average = spike_triggered_average(recording, num_taps=5, mean=127.5, std=127.5)
    truth = KERNEL[:, None, None] * fields.T
    # White noise, exponential: the average is the filter (of binary noise, nearly), with noise of 1 / sqrt(spikes).
    raw = np.corrcoef(average.ravel(), truth.ravel())[0, 1]
    assert raw > 0.9
    assert np.sum(average * truth) / np.sum(truth**2) == pytest.approx(1.0, abs=0.15)
    filters = separable_filters(average, SHAPE, rank=1, envelope=1.5)
    np.testing.assert_array_equal(filters.centre, CENTRES)
    envelope = np.asarray(gaussian_envelope(jnp.asarray(filters.centre), 1.5, *SHAPE))
    product = np.einsum("tnr,pnr->tnp", filters.time, filters.space * envelope[..., None])
    assert np.corrcoef(product.ravel(), truth.ravel())[0, 1] > raw + 0.03


def test_average_with_frame_step_looks_at_every_second_frame(retina) -> None:
    recording, _ = retina
    every = spike_triggered_average(recording, num_taps=5, mean=127.5, std=127.5)
    second = spike_triggered_average(recording, num_taps=3, frame_step=2, mean=127.5, std=127.5)
    np.testing.assert_allclose(second, every[::2], rtol=1e-5)


def test_filters_longer_than_the_trials_are_an_error(retina) -> None:
    with pytest.raises(NeuroreconError, match="longer than the 2000 taps"):
        spike_triggered_average(retina[0], num_taps=2000, mean=127.5, std=127.5)


def test_start_from_data_needs_an_envelope(retina) -> None:
    recording, _ = retina
    encoder = encoder_for_retina(envelope=0.0)
    variables = encoder.init(jax.random.key(0), inputs(1, 40, SHAPE))
    started = start_from_data(variables, [recording], encoder=encoder)
    np.testing.assert_array_equal(started["params"]["readout0"]["space"], variables["params"]["readout0"]["space"])


def test_training_starts_at_the_average_and_improves(retina) -> None:
    recording, fields = retina
    encoder = encoder_for_retina()
    settings = TrainingSettings(
        num_steps=12, batch_size=16, warmup_steps=3, validation_every=12, validation_trials=1, ema_decay=0.9
    )
    start = initial_state(encoder, [recording], settings, num_models=1, key=jax.random.key(0))
    readout = jax.tree.map(np.array, start.variables["params"]["readout0"])
    np.testing.assert_array_equal(readout["centre"][0], CENTRES)
    np.testing.assert_array_equal(readout["bias"], START_BIAS)
    records = []
    state = train(
        encoder,
        [recording],
        settings,
        num_models=1,
        seed=0,
        validation_tier="oracle",
        state=start,
        on_step=lambda _, record: records.append(record),
    )
    after = state.best["params"]["readout0"]
    np.testing.assert_array_equal(after["centre"][0], CENTRES)  # stays
    assert not np.allclose(after["space"][0], readout["space"][0])
    movie = recording.trial(recording.trial_ids("oracle")[0])
    rate = 0.3 * np.exp(
        np.stack(
            [np.convolve(s, KERNEL)[:400] for s in ((movie.stimulus.reshape(400, -1) - 127.5) / 127.5 @ fields).T],
            axis=1,
        )
    )
    ceiling = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(rate[50:].T, movie.responses[50:].T)])
    assert records[-1]["validation_correlation"][0] > 0.9 * ceiling
