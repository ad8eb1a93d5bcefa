"""Training: the objective's pieces, the loop's invariants, and runs that are the same however they are cut."""

import types

import jax
import numpy as np
import pytest

from neurorecon.encoders import DwiseNeuro, Factorized
from neurorecon.errors import NeuroreconError
from neurorecon.recordings import Trial, open_recording, write_sensorium
from neurorecon.recordings.prepared import prepare
from neurorecon.runs import Checkpoints
from neurorecon.training.initialise import response_means, stimulus_statistics
from neurorecon.training.trainer import TrainingSettings, draw_batches, initial_state, split_trials, train, train_step
from tests.recording_examples import one_line

SHAPE, FRAMES = (6, 8), 40
SETTINGS = TrainingSettings(
    num_steps=24, batch_size=3, warmup_steps=2, validation_every=8, validation_trials=2, learning_rate=3e-2
)
ENCODER = Factorized(
    num_neurons=(5, 3),
    canvas=SHAPE,
    window_frames=10,
    frame_step=2,
    warmup_frames=3,
    features=(3,),
    spatial_kernels=(3,),
    temporal_kernels=(3,),
    strides=(2,),
)


def animal(folder, name, num_neurons, seed):
    """Neurons that follow the brightness of flickering noise, two frames later."""
    rng = np.random.default_rng(seed)
    trials = []
    for number in range(8):
        flicker = rng.uniform(0, 1, FRAMES)
        movie = rng.integers(0, 50, (FRAMES, *SHAPE)) + np.floor(200 * flicker)[:, None, None].astype(np.float32)
        seen = np.roll(flicker, 2)[:, None] * np.linspace(1, 2, num_neurons)
        responses = (0.1 + 2 * seen**2 + 0.1 * rng.random(seen.shape)).astype(np.float32)
        tier = "oracle" if number == 7 else "train"
        behaviour = rng.normal(size=(FRAMES, 4)).astype(np.float32)
        trials.append(Trial(str(number), name, tier, movie, responses, behaviour))
    write_sensorium(folder / name, trials)
    return prepare(open_recording(folder / name), None)


@pytest.fixture(scope="module")
def animals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("animals")
    return [animal(folder, "five", 5, 0), animal(folder, "three", 3, 1)]


def run(animals, *, settings=SETTINGS, num_models=2, seed=0, **options):
    records = []

    def on_step(state, record):
        records.append(record)
        if "watch" in options:
            options["watch"](state, record)

    kept = {k: v for k, v in options.items() if k != "watch"}
    state = train(ENCODER, animals, settings, num_models=num_models, seed=seed, on_step=on_step, **kept)
    return state, records


@pytest.fixture(scope="module")
def whole(animals):
    """An uninterrupted run, and the compiled functions' numbers of shapes after its first step and at its end."""
    sizes = []
    state, records = run(animals, watch=lambda *_: sizes.append(train_step._cache_size()))
    return types.SimpleNamespace(state=jax.tree.map(np.asarray, state), records=records, sizes=sizes)


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_loss_falls_and_the_second_step_compiles_nothing(whole):
    losses = np.array([r["loss"] for r in whole.records])
    assert losses.shape == (24, 2) and (losses[-5:].mean(0) < losses[:5].mean(0) - 0.05).all()
    assert len(set(whole.sizes)) == 1
    assert [r["step"] for r in whole.records if "validation_correlation" in r] == [8, 16, 24]
    # The best of each model is kept with its score.
    scores = np.array([r["validation_correlation"] for r in whole.records if "validation_correlation" in r])
    np.testing.assert_allclose(whole.state.best_score, scores.max(0), rtol=1e-6)


def test_models_differ_and_start_from_the_data(animals, whole):
    start = initial_state(ENCODER, animals, SETTINGS, num_models=2, key=jax.random.key(0))
    kernel = start.variables["params"]["spatial0"]["kernel"]
    assert not np.allclose(kernel[0], kernel[1])
    for index, recording in enumerate(animals):
        scale = np.exp(np.asarray(start.variables["params"][f"log_scale{index}"])) * np.log(2)
        np.testing.assert_allclose(scale, np.tile(response_means(recording), (2, 1)), rtol=1e-5)
    final = whole.state.variables["params"]["spatial0"]["kernel"]
    assert not np.allclose(final[0], final[1])


MUON = TrainingSettings(**{**vars(SETTINGS), "optimiser": "muon", "kernel_rate": 0.1})


@pytest.fixture(scope="module")
def with_muon(animals):
    return run(animals, settings=MUON)


def test_muon_moves_kernels_by_orthogonal_steps_and_adam_the_rest(animals, with_muon):
    _, records = with_muon
    assert np.mean([r["loss"] for r in records[-4:]]) < np.mean([r["loss"] for r in records[1:4]])
    flat = TrainingSettings(**{**vars(MUON), "warmup_steps": 1})
    start = initial_state(ENCODER, animals, flat, num_models=1, key=jax.random.key(0))
    seen = [start.variables["params"]["temporal0"]["kernel"]]
    seen = [np.array(seen[0][0])]
    run(
        animals, settings=flat, num_models=1, state=start,
        watch=lambda s, _: seen.append(np.array(s.variables["params"]["temporal0"]["kernel"][0])),
    )  # fmt: skip
    # The first step moves nothing; the second moves by the peak rate times a near-orthogonal matrix.
    np.testing.assert_array_equal(seen[0], seen[1])
    values = np.linalg.svd((seen[2] - seen[1]).reshape(-1, 3) / flat.kernel_rate, compute_uv=False)
    assert (values > 0.6).all() and (values < 1.3).all()


def test_muon_resumes_bit_for_bit_and_in_parallel(animals, with_muon, tmp_path):
    store = Checkpoints(tmp_path / "checkpoints")
    short = TrainingSettings(**vars(MUON))

    class Stop(Exception):
        pass

    def stop(state, record):
        if record["step"] == 11:
            store.save(11, state)
            raise Stop

    with pytest.raises(Stop):
        run(animals, settings=short, watch=stop)
    like = initial_state(ENCODER, animals, MUON, num_models=2, key=jax.random.key(0))
    resumed, _ = run(animals, settings=MUON, state=store.restore(like))
    assert same(resumed, with_muon[0])
    parallel, _ = run(animals, settings=MUON, parallel=True)
    for a, b in zip(jax.tree.leaves(parallel.ema), jax.tree.leaves(with_muon[0].ema), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-2, atol=2e-3)


def test_counts_keep_their_type_in_the_running_mean(animals):
    encoder = DwiseNeuro(
        num_neurons=(5,), canvas=(8, 8), screen=SHAPE, window_frames=4, core_features=(2,), spatial_strides=(2,),
        temporal_kernel=3, expansion_ratio=1, se_reduce_ratio=1, cortex_features=(4,),
    )  # fmt: skip
    settings = TrainingSettings(**{**vars(SETTINGS), "num_steps": 1, "validation_every": 1})
    start = initial_state(encoder, animals[:1], settings, num_models=1, key=jax.random.key(0))
    types_before = [x.dtype for x in jax.tree.leaves(start.ema)]
    state = train(encoder, animals[:1], settings, num_models=1, seed=0, state=start)
    assert [x.dtype for x in jax.tree.leaves(state.ema)] == types_before


def test_every_animals_readout_is_trained(animals, whole):
    start = initial_state(ENCODER, animals, SETTINGS, num_models=2, key=jax.random.key(0)).variables["params"]
    for index, neurons in enumerate((5, 3)):
        before, after = start[f"readout{index}"], whole.state.variables["params"][f"readout{index}"]
        assert after["weights"].shape[1] == neurons
        for name in ("weights", "bias", "position"):
            moved = np.abs(np.asarray(after[name]) - np.asarray(before[name])).reshape(2, neurons, -1).max(2)
            assert (moved > 0).all(), name


@pytest.mark.parametrize("cut", [1, 8, 23])
def test_resumed_is_the_uninterrupted_run_bit_for_bit(animals, whole, tmp_path, cut):
    class Stop(Exception):
        pass

    def save_and_stop(state, record):
        if record["step"] == cut:
            Checkpoints(tmp_path / "c").save(cut, state)
            raise Stop

    with pytest.raises(Stop):
        run(animals, watch=save_and_stop)
    like = initial_state(ENCODER, animals, SETTINGS, num_models=2, key=jax.random.key(0))
    found = Checkpoints(tmp_path / "c").restore(like)
    assert int(found.step) == cut
    state, records = run(animals, state=found)
    assert same(state, whole.state)
    assert records == whole.records[cut:]


def test_parallel_models_are_those_trained_one_after_another(animals, whole):
    kept = {False: [], True: []}
    for parallel, states in kept.items():
        keep = lambda state, record, states=states: states.append(jax.tree.map(np.array, state.variables))  # noqa: E731
        _, records = run(animals, parallel=parallel, watch=keep)
        np.testing.assert_allclose([r["loss"] for r in records[:4]], [r["loss"] for r in whole.records[:4]], rtol=1e-3)
    for a, b in zip(jax.tree.leaves(kept[False][1]), jax.tree.leaves(kept[True][1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-2, atol=1e-3)


def test_batches_are_a_function_of_seed_and_step(animals):
    windows = [r.windows("train", 10, 2) for r in animals]
    mixing = TrainingSettings(**{**vars(SETTINGS), "cutmix_probability": 0.5})

    def draw(seed, step):
        return draw_batches(ENCODER, animals, windows, mixing, num_models=2, seed=seed, step=step)

    first = draw(0, 5)
    draw(0, 6)  # nothing remembers what was drawn before
    assert same(first, draw(0, 5))
    assert not same(first, draw(0, 6)) and not same(first, draw(1, 5))
    assert first[0][0].shape == (2, 3, 10, *SHAPE) and first[1][1].shape == (2, 3, 10, 3)
    assert not np.array_equal(first[0][0][0], first[0][0][1])  # each model has its own


def test_held_out_trials_never_enter_batches(animals, monkeypatch):
    fit, held_out = split_trials(animals[0], validation_tier="train", num_validation=2)
    assert len(held_out) == 2 and not set(fit) & set(held_out)
    assert set(fit) | set(held_out) == set(animals[0].trial_ids("train"))
    seen = []
    gather = type(animals[0]).gather

    def watched(self, windows, *args, **kwargs):
        batch = gather(self, windows, *args, **kwargs)
        seen.append((self.name, batch[0]))
        return batch

    monkeypatch.setattr(type(animals[0]), "gather", watched)
    run(animals)
    frames = {name: {t: r.trial(t).stimulus for t in r.trial_ids()} for name, r in zip(("five", "three"), animals)}
    sources = set()
    for name, batch in seen:
        for window in batch:
            first = np.asarray(window[0], np.float32)
            (source,) = {t for t, movie in frames[name].items() if (movie == first).all((1, 2)).any()}
            sources.add(source)
    assert sources == set(fit) and len(seen) == 2 * 2 * 24


def test_validation_on_another_tier_fits_all_training_trials(animals):
    fit, chosen = split_trials(animals[0], validation_tier="oracle", num_validation=4)
    assert fit == animals[0].trial_ids("train") and chosen == ["7"]
    for options in ({"num_validation": 7}, {"num_validation": 0}):
        with pytest.raises(NeuroreconError):
            split_trials(animals[0], validation_tier="train", **options)
    with pytest.raises(NeuroreconError, match="oracel"):
        split_trials(animals[0], validation_tier="oracel", num_validation=1)


def test_ema_follows_the_weights_with_a_warm_up(animals):
    followed = []
    start = initial_state(ENCODER, animals, SETTINGS, num_models=2, key=jax.random.key(0))
    expected = np.array(start.variables["params"]["spatial0"]["kernel"], np.float64)

    def watch(state, record):
        nonlocal expected
        k = record["step"] - 1
        decay = min(SETTINGS.ema_decay, (1 + k) / (10 + k))
        expected = decay * expected + (1 - decay) * np.asarray(state.variables["params"]["spatial0"]["kernel"])
        followed.append((np.array(state.ema["params"]["spatial0"]["kernel"]), expected.copy()))

    run(animals, watch=watch)
    for found, wanted in followed:
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
    assert len(followed) == 24


def test_diverging_loss_is_one_line(animals):
    start = initial_state(ENCODER, animals, SETTINGS, num_models=2, key=jax.random.key(0))
    far = jax.tree.map(lambda x: x.at[1].multiply(1e30), start.variables["params"])
    with pytest.raises(NeuroreconError) as error:
        run(animals, state=start._replace(variables={**start.variables, "params": far}))
    one_line(error, "model 1", "not finite at step 0", "learning rate")


def test_recordings_that_do_not_fit_are_one_line(animals):
    with pytest.raises(NeuroreconError, match=r"expected \(5, 3\) neurons"):
        train(ENCODER, animals[:1], SETTINGS, num_models=1, seed=0)
    with pytest.raises(NeuroreconError, match="expected frames of"):
        train(ENCODER.clone(canvas=(6, 9)), animals, SETTINGS, num_models=1, seed=0)
    state = initial_state(ENCODER, animals, SETTINGS, num_models=1, key=jax.random.key(0))
    with pytest.raises(NeuroreconError, match="79 frames of a window"):
        train(ENCODER.clone(window_frames=40), animals, SETTINGS, num_models=1, seed=0, state=state)


@pytest.mark.parametrize(
    "change",
    [
        {"num_steps": 0},
        {"optimiser": "sgd"},
        {"batch_size": 0},
        {"validation_every": 0},
        {"ema_decay": 1.5},
        {"cutmix_probability": -1.0},
    ],
)
def test_settings_out_of_range_are_one_line(animals, change):
    with pytest.raises(NeuroreconError, match=next(iter(change))):
        train(ENCODER, animals, TrainingSettings(**{**vars(SETTINGS), **change}), num_models=1, seed=0)


def test_dwiseneuro_trains_by_the_same_loop(animals):
    encoder = DwiseNeuro(
        num_neurons=(5,), canvas=(8, 8), screen=SHAPE, window_frames=4, core_features=(2,), spatial_strides=(2,),
        temporal_kernel=3, expansion_ratio=1, se_reduce_ratio=1, cortex_features=(4,),
    )  # fmt: skip
    settings = TrainingSettings(**{**vars(SETTINGS), "num_steps": 2, "validation_every": 2})
    start = initial_state(encoder, animals[:1], settings, num_models=1, key=jax.random.key(0))
    before = jax.tree.map(np.array, start.variables["params"])
    state = train(encoder, animals[:1], settings, num_models=1, seed=0, state=start)
    assert not same(before, state.variables["params"]) and np.isfinite(state.best_score).all()


def test_statistics_and_places_of_the_training_trials(animals):
    statistics = stimulus_statistics(animals)
    movies = np.concatenate([r.trial(t).stimulus.ravel() for r in animals for t in r.trial_ids("train")])
    assert statistics["stimulus_mean"] == pytest.approx(movies.mean(), rel=1e-5)
    assert statistics["stimulus_std"] == pytest.approx(movies.std(), rel=1e-4)
    assert len(statistics["behaviour_mean"]) == 4 and min(statistics["behaviour_std"]) > 0
