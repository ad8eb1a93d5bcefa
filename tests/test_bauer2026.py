"""The replication of Bauer et al. (2026) on simulated trees with its names: clips, variants, table, resuming."""

import json
import types
from pathlib import Path

import jax
import ml_collections
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

import experiments.alpha_masks
import experiments.bauer2026
from experiments.bauer2026 import ROWS, VARIANTS, replicate
from experiments.bauer2026_stimuli import mean_behaviour, stimuli
from experiments.configs.bauer2026 import CLIPS, get_config
from experiments.inputs import fold_clips, fold_trials, located
from experiments.reconstruct import reconstruct_recordings
from neurorecon.encoders import DwiseNeuro, load_published, predict_ensemble, predict_trial
from neurorecon.encoders.position import inverse_frequencies
from neurorecon.encoders.published import export_published
from neurorecon.errors import NeuroreconError
from neurorecon.reconstruction import published_recipe, reconstruct
from neurorecon.recordings import Trial, open_recording, write_sensorium
from neurorecon.training.folds import fold
from tests.tiny_run import files_and_times, random_variables

ANIMALS = list(CLIPS)
NEURONS = (5, 6, 9, 7, 8)
MOVIES = [variant for variant in VARIANTS if variant != "stimuli"]
FRAMES, SIDE, SKIP = 20, 16, 4
# The places that the paper names: those of the first ten with near-duplicates, and what stands in for them.
REPLACED = ({3: 10, 9: 11}, {0: 10, 4: 11}, {0: 10, 2: 14, 7: 15, 8: 16}, {4: 10}, {})


def tree(folder: Path, animal: int, num_clips: int) -> None:
    """Trials of fold 0 between others, in both tiers that have folds."""
    rng = np.random.default_rng(animal)
    left = {0: num_clips, 1: 2, 2: 2, 3: 2}
    trials: list[Trial] = []
    while any(left.values()):
        movie = np.repeat(rng.uniform(0, 255, (5, SIDE, SIDE)), FRAMES // 5, axis=0).astype(np.float32)
        number = fold(movie)
        if not left.get(number):
            continue
        left[number] -= 1
        trials.append(
            Trial(
                id=str(len(trials)),
                animal=ANIMALS[animal],
                tier="oracle" if len(trials) % 4 == 1 else "train",
                stimulus=movie,
                responses=rng.exponential(3, (FRAMES, NEURONS[animal])).astype(np.float32),
                behaviour=rng.normal(5, 1, (FRAMES, 4)).astype(np.float32),
            )
        )
    write_sensorium(folder / ANIMALS[animal], trials)


def weights(encoder: DwiseNeuro, seed: int):
    """Random weights with the fixed frequencies of the position code."""
    variables = random_variables(encoder, seed)
    for part in variables["batch_stats"].values():
        if "position" in part:
            size = len(part["position"]["inv_freq"])
            part["position"]["inv_freq"] = inverse_frequencies(6 * size).astype(np.float32)
    return variables


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Most of the time here is XLA's."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Folders of data, weights and masks as downloaded, scaled down."""
    folder = tmp_path_factory.mktemp("published")
    for animal in range(5):
        tree(folder / "data", animal, num_clips=17 if animal == 2 else 12)
        alpha = np.full((SIDE, SIDE), -0.1)
        alpha[2:14, 2:14], alpha[4:12, 4:12], alpha[5:11, 6:12] = 0.3, 0.6, 1.2
        (folder / "masks").mkdir(exist_ok=True)
        np.save(folder / "masks" / f"mask_m{animal}.npy", alpha)
    encoder = DwiseNeuro(
        num_neurons=(*NEURONS, 4),  # the readout of an old animal, which nobody asks for
        canvas=(SIDE, SIDE),
        window_frames=4,
        core_features=(4,),
        spatial_strides=(2,),
        expansion_ratio=2,
        se_reduce_ratio=2,
        cortex_features=(8,),
    )
    for model in range(7):
        path = folder / "weights" / f"fold_{model}" / f"model-017-0.29{model}.pth"
        path.parent.mkdir(parents=True)
        export_published(encoder, weights(encoder, model), path)
    return folder


def config_of(folder: Path, **changes) -> ml_collections.ConfigDict:
    config = get_config()
    config.data, config.weights = str(folder / "data"), str(folder / "weights")
    config.mask.files = str(folder / "masks")
    config.num_steps, config.skip_frames, config.max_clips = 3, SKIP, 1
    config.training.validation_trials = 8
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return config


@pytest.fixture(scope="module")
def run(published, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    config = config_of(published)
    return types.SimpleNamespace(
        folder=workdir, config=config, found=replicate(config, str(workdir)), data=published / "data"
    )


def stored(run, variant, animal, trial_id):
    with np.load(run.folder / variant / "reconstructions" / animal / f"{trial_id}.npz") as arrays:
        return dict(arrays)


def clip(run, animal):
    """An animal's only clip: recording, trial."""
    recording = open_recording(run.data / animal)
    (path,) = (run.folder / "standard/reconstructions" / animal).glob("*.npz")
    return recording, recording.trial(path.stem)


def test_clips_are_those_of_the_rule(published):
    config = config_of(published)
    for index, (animal, replaced) in enumerate(zip(ANIMALS, REPLACED)):
        recording = open_recording(published / "data" / animal)
        in_fold = [i for i in recording.trial_ids() if fold(recording.trial(i).stimulus) == 0]
        assert len(in_fold) == (17 if index == 2 else 12) and {recording.tier(i) for i in in_fold} == {
            "train",
            "oracle",
        }
        assert fold_trials(recording, 0) == in_fold
        assert fold_clips(config, recording) == [in_fold[replaced.get(place, place)] for place in range(10)]
        config.fold_clips = ""
        assert fold_clips(config, recording) == in_fold
        config = config_of(published)


def test_what_the_config_names(published):
    config = located(config_of(published))
    assert [Path(p).name for p in config.recordings.split(",")] == ANIMALS
    assert [Path(p).parent.name for p in config.encoders.split(",")] == [f"fold_{k}" for k in range(7)]
    assert config.recipe == "published" and config.skip_frames == SKIP and get_config().skip_frames == 30


def test_every_variant_reconstructs_every_animal(run):
    assert sorted(p.name for p in run.folder.iterdir() if p.is_dir() and p.name != "masks") == sorted(VARIANTS)
    movies = {}
    for variant in MOVIES:
        for animal in ANIMALS:
            recording, trial = clip(run, animal)
            assert trial.id == fold_clips(run.config, recording)[0]
            arrays = stored(run, variant, animal, trial.id)
            count = 1 if variant == "gradients" else 7
            assert arrays["movies"].shape == (count, FRAMES, SIDE, SIDE) and arrays["trace_loss"].shape == (3,)
            movies[variant, animal] = arrays["movies"]
    for variant in MOVIES:
        for animal in ANIMALS:
            moved = np.abs(movies[variant, animal] - 127.5).max((0, 1)) > 0
            inside = np.zeros((SIDE, SIDE), bool)
            edge = {"strict_mask": np.s_[5:11, 6:12], "no_mask": np.s_[2:14, 2:14]}.get(variant, np.s_[4:12, 4:12])
            inside[edge] = True
            assert moved[inside].all() and not moved[~inside].any(), variant
            same = np.array_equal(movies[variant, animal], movies["standard", animal])
            assert same == (variant == "standard")


def test_scores_in_the_published_order(run):
    animal = ANIMALS[3]
    _, trial = clip(run, animal)
    arrays = stored(run, "standard", animal, trial.id)
    inside = np.zeros((SIDE, SIDE), bool)
    inside[5:11, 6:12] = True
    np.testing.assert_array_equal(arrays["mask"], inside)
    late, truth = arrays["movies"][:, SKIP:].astype(float), trial.stimulus[SKIP:]
    scores = run.found["scores"]["standard"][animal][trial.id]

    def correlation(movie, mask=inside):
        return np.corrcoef(truth[:, mask].ravel(), movie[:, mask].ravel())[0, 1]

    mean = late.mean(0)
    smooth = gaussian_filter(mean, 0.5)  # after the first frames are gone
    assert scores["movie"] == pytest.approx(correlation(smooth))
    assert scores["unsmoothed"] == pytest.approx(correlation(mean))
    assert scores["frame"] == pytest.approx(
        np.mean([np.corrcoef(t[inside], m[inside])[0, 1] for t, m in zip(truth, smooth)])
    )
    assert scores["models_1"] == pytest.approx(np.mean([correlation(gaussian_filter(m, 0.5)) for m in late]))
    pairs = [late[[k, (k + 1) % 7]].mean(0) for k in range(7)]
    assert scores["models_2"] == pytest.approx(np.mean([correlation(gaussian_filter(m, 0.5)) for m in pairs]))
    update, screen = np.zeros((2, SIDE, SIDE), bool)
    update[4:12, 4:12], screen[2:14, 2:14] = True, True
    assert scores["whole_screen"] == pytest.approx(correlation(np.where(update, smooth, 127.5), screen))


def test_response_scores(run):
    members = [load_published(path) for path in located(run.config).encoders.split(",")]
    for index, animal in enumerate(ANIMALS):
        _, trial = clip(run, animal)
        scores = run.found["scores"]["standard"][animal][trial.id]
        # The published means rest on the animal with most neurons alone.
        assert ("responses_truth_published" in scores) == (index == 2)
        if index != 2:
            continue
        arrays = stored(run, "standard", animal, trial.id)
        shown = np.where(arrays["mask"], arrays["movies"], 127.5).astype(np.float32)
        own = np.mean([predict_trial(*m, s, trial.behaviour, readout=index) for m, s in zip(members, shown)], axis=0)
        true = predict_ensemble(members, trial.stimulus, trial.behaviour, readout=index)
        for name, predicted in (("truth", true), ("movie", own)):
            expected = np.corrcoef(trial.responses[SKIP:].ravel(), predicted[SKIP:].ravel())[0, 1]
            assert scores[f"responses_{name}"] == pytest.approx(expected, rel=1e-5)
            assert scores[f"responses_{name}_published"] == scores[f"responses_{name}"]


def test_stimuli_from_each_models_own_predictions(run):
    animal = ANIMALS[0]
    recording = open_recording(run.data / animal)
    shown = stimuli(0, SIDE, SIDE, 1)
    assert len(shown) == 9 and len(stimuli(0, SIDE, SIDE, 0)) == 2 * 10 + 7 * 4 and not stimuli(3, SIDE, SIDE, 0)
    twice = stimuli(2, SIDE, SIDE, 2)
    np.testing.assert_array_equal(twice["noise_8_4", 1], 255 - twice["noise_8_4", 0])
    behaviour = np.tile(mean_behaviour(recording), (60, 1))
    saved = [np.load(run.folder / f"stimuli/{animal}/{model}.npz")["movies"] for model in range(7)]
    name = "grating_0.018_1.875"
    place, truth = list(shown).index((name, 0)), shown[name, 0]
    member = load_published(located(run.config).encoders.split(",")[5])
    responses = predict_trial(*member, truth, behaviour, readout=0)
    update, inside = np.zeros((2, SIDE, SIDE), bool)
    update[4:12, 4:12], inside[5:11, 6:12] = True, True
    recipe = published_recipe(smoothing=0.0)
    alone = reconstruct(
        [member], responses, behaviour, recipe=recipe, key=jax.random.key(0), update_mask=update, num_steps=3
    )
    np.testing.assert_allclose(saved[5][place], alone.movie, atol=1e-3)
    mean = np.mean([movies[place] for movies in saved], 0)
    expected = np.corrcoef(truth[SKIP:, inside].ravel(), mean[SKIP:, inside].ravel())[0, 1]
    assert run.found["scores"]["stimuli"][animal]["0"][name] == pytest.approx(expected, rel=1e-4)


def test_the_table_has_every_row(run):
    rows = json.loads((run.folder / "table.json").read_text())["rows"]
    text = (run.folder / "table.txt").read_text()
    assert [row["name"] for row in rows] == [row.name for row in ROWS]
    for row, line in zip(rows, text.splitlines()[1:]):
        assert line.startswith(row["name"])
        if row["variant"] is None:
            assert row["mean"] is None and line.rstrip().endswith("not part of this")
        else:
            counts = {"noise": 3, "grating": 1}
            count = counts.get(row["score"].split("_")[0], 1 if row["score"].endswith("_published") else 5)
            assert -1 <= row["mean"] <= 1 and row["clips"] == count
            assert f"{row['mean']:.3f}" in line
    assert rows[0]["published"] == 0.569 and "0.569 [0.542, 0.596]" in text and "0.238" in text
    first = [clip["movie"] for clips in run.found["scores"]["standard"].values() for clip in clips.values()]
    assert rows[0]["mean"] == pytest.approx(np.mean(first))


def test_goes_on_where_it_was(run, monkeypatch):
    path = next((run.folder / "strict_mask/reconstructions" / ANIMALS[1]).glob("*.npz"))
    before = stored(run, "strict_mask", ANIMALS[1], path.stem)["movies"]
    folders = [run.folder / variant / "reconstructions" for variant in MOVIES] + [run.folder / "stimuli"]
    times = files_and_times(*folders)
    path.unlink()
    config = run.config.copy_and_resolve_references()
    config.variants = "strict_mask, standard"
    monkeypatch.setattr(experiments.bauer2026, "predict_trial", None)  # responses are not predicted again
    found = replicate(config, str(run.folder))
    np.testing.assert_array_equal(stored(run, "strict_mask", ANIMALS[1], path.stem)["movies"], before)
    changed = {p for p, time in files_and_times(*folders).items() if time != times[p]}
    assert changed == {str(path)}
    means = {row["name"]: row["mean"] for row in found["rows"]}
    assert means["strict mask"] == pytest.approx(run.found["rows"][8]["mean"])
    assert means["no update mask"] is None
    assert "not run" in (run.folder / "table.txt").read_text()


def test_predicted_responses_and_dropped_neurons(published, tmp_path, monkeypatch):
    """What the descent is given, in each way that the config has."""
    given = []

    def noted(encoders, responses, behaviour, *, recipe, neurons, **options):
        given.append((responses[0], recipe.ablation, neurons))
        raise NeuroreconError("far enough")

    monkeypatch.setattr("experiments.descent_groups.reconstruct_clips", noted)
    animal = ANIMALS[2]
    changes = {"recorded": {}, "predicted": {"responses": "predicted"}, "half": {"neurons__share": 0.5}}
    changes |= {"exclude": {"neurons__share": 0.25, "neurons__ablation": "exclude"}}
    changes |= {"redrawn": {"neurons__share": 0.5, "neurons__seed": 1}}
    for name, change in changes.items():
        with pytest.raises(NeuroreconError, match="far enough"):
            reconstruct_recordings(config_of(published, animals=animal, **change), str(tmp_path / name))
    recorded, predicted, half, quarter, redrawn = given
    recording = open_recording(published / "data" / animal)
    trial = recording.trial(fold_clips(config_of(published), recording)[0])
    members = [load_published(p) for p in sorted((published / "weights").rglob("*.pth"))]
    np.testing.assert_array_equal(recorded[0], trial.responses)
    expected = predict_ensemble(members, trial.stimulus, trial.behaviour, readout=2)
    np.testing.assert_allclose(predicted[0], expected, rtol=1e-6)
    assert recorded[1:] == ("zero_target", None) and quarter[1] == "exclude"
    assert 0 < quarter[2].sum() <= half[2].sum() < 9 and not (quarter[2] & ~half[2]).any()
    assert not np.array_equal(half[2], redrawn[2])


def test_masks_and_priors_never_see_the_fold(published, tmp_path, monkeypatch):
    shown = []

    def noted(encoder, variables, stimuli, behaviours, responses, **options):
        shown.append(stimuli)
        raise NeuroreconError("far enough")

    monkeypatch.setattr(experiments.alpha_masks.masks, "train_alpha_mask", noted)
    recording = open_recording(published / "data" / ANIMALS[0])
    for number, expected in ((1, {1}), (-1, {1, 2, 3})):
        config = config_of(published, animals=ANIMALS[0], mask__files="", mask__fold=number)
        with pytest.raises(NeuroreconError, match="far enough"):
            reconstruct_recordings(config, str(tmp_path / str(number)))
        assert {fold(movie) for movie in shown[-1]} <= expected
    assert len(shown[0]) == len(fold_trials(recording, 1)) == 2


def test_faults_in_one_line(published, tmp_path):
    def line(**changes):
        with pytest.raises(NeuroreconError) as caught:
            replicate(config_of(published, **changes), str(tmp_path / "run"))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    half = tmp_path / "data"
    half.mkdir()
    for animal in ANIMALS[:4]:
        (half / animal).symlink_to(published / "data" / animal)
    assert f"folder {ANIMALS[4]}, found none" in line(data=str(half))
    assert "--config.data" in line(data=str(tmp_path / "nowhere"))
    assert f"--config.data: expected the folder that holds {ANIMALS[0]}" in line(data="")
    assert "--config.weights" in line(weights=str(tmp_path / "nowhere"))
    assert "expected 7 .pth files (--config.num_models), found 1" in line(weights=str(published / "weights/fold_3"))
    missing = ",".join(str(published / f"weights/{k}.pth") for k in range(7))
    assert "weights/0.pth" in line(weights="", encoders=missing)
    assert "found both" in line(recordings=str(published / "data" / ANIMALS[0]))
    assert "place 12 in fold 0 is asked for" in line(animals=ANIMALS[0], fold_clips=f"{ANIMALS[0]}: 0 12", max_clips=0)
    assert "expected places for" in line(fold_clips=f"{ANIMALS[0]}: 0")
    assert "expected 'ANIMAL: 0 1 2'" in line(fold_clips="0-9")
    assert "--config.fold: expected 0 to 6" in line(fold=7)
    assert "mask_m0.npy there, found neither" in line(mask__files=str(tmp_path))
    assert "--config.variants" in line(variants="strickt")
    assert "--config.neurons.share" in line(neurons__share=0.0)
    assert "--config.responses" in line(responses="guessed")
    assert "save_movies" in line(save_movies=False)
