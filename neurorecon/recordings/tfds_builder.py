"""A recording as a tensorflow-datasets dataset in ArrayRecord files: the door for published datasets.

TensorFlow itself is not needed. Random access to whole trials goes through `as_data_source`; grain takes the
result as a source. Training reads windows through `prepared`, which is much faster: a record holds a whole
trial, so that one window costs the reading of its trial (benchmarks/input_pipeline.py). Importing this module
imports tensorflow-datasets, which takes a second: nothing else in the package does.
"""

import logging
import operator
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import tensorflow_datasets as tfds

from neurorecon.errors import NeuroreconError
from neurorecon.files import atomic_path
from neurorecon.recordings.prepared import fingerprint
from neurorecon.recordings.sensorium import Recording
from neurorecon.recordings.trial import BEHAVIOUR, Trial
from neurorecon.recordings.validation import check_tier, nearest_tier_line

_DATASET = "sensorium_tree"
_VERSION = "1.0.0"


class SensoriumTree(tfds.core.GeneratorBasedBuilder):
    """One animal's trials; a split for each tier, a config for each animal.

    An example is {"id": text, "stimulus": (time, height, width), "responses": (time, neuron) float32,
    "behaviour": (time, 4) float32, "withheld": bool}; the stimulus is uint8 where all its grey values are
    whole, else float32.
    """

    name = _DATASET
    VERSION = tfds.core.Version(_VERSION)
    # Where tensorflow-datasets would look for checksums of downloads, of which there are none. Looking needs
    # a package that it doesn't declare as a dependency (tensorflow/datasets issue 11212).
    code_path = None

    def __init__(self, recording: Recording, **kwargs: Any) -> None:
        self._recording = recording
        self._fingerprint = fingerprint(recording)
        config = tfds.core.BuilderConfig(name=recording.name, description="One animal of a Sensorium tree.")
        super().__init__(config=config, file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        recording = self._recording
        stimuli = (recording.stimulus(t) for t in recording.trial_ids())
        whole = all(_whole_greys(stimulus) for stimulus in stimuli)
        self._stimulus_type = np.uint8 if whole else np.float32
        features = tfds.features.FeaturesDict(
            {
                "id": tfds.features.Text(),
                "stimulus": tfds.features.Tensor(shape=(None, *recording.frame_shape), dtype=self._stimulus_type),
                "responses": tfds.features.Tensor(shape=(None, recording.num_neurons), dtype=np.float32),
                "behaviour": tfds.features.Tensor(shape=(None, len(BEHAVIOUR)), dtype=np.float32),
                "withheld": tfds.features.Scalar(dtype=np.bool_),
            }
        )
        metadata = tfds.core.MetadataDict(
            animal=recording.name,
            frame_rate=recording.frame_rate,
            num_neurons=recording.num_neurons,
            fingerprint=self._fingerprint,
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description="Movies, behaviour and neural responses of one animal, trial by trial.",
            features=features,
            metadata=metadata,
            disable_shuffling=True,  # records stay in the order of the trials
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
        del dl_manager  # the tree is already on this machine
        return {tier: self._generate_examples(tier) for tier in self._recording.tier_counts}

    def _generate_examples(self, tier: str) -> Iterator[tuple[int, dict]]:
        for trial_id in self._recording.trial_ids(tier):
            trial = self._recording.trial(trial_id)
            yield (
                int(trial_id),
                {
                    "id": trial.id,
                    "stimulus": trial.stimulus.astype(self._stimulus_type),
                    "responses": trial.responses,
                    "behaviour": trial.behaviour,
                    "withheld": trial.withheld,
                },
            )


class DatasetTrials:
    """The trials of one tier of a dataset, read one at a time at random; a data source for grain."""

    def __init__(self, source: Any, animal: str, tier: str) -> None:
        self._source, self._animal, self._tier = source, animal, tier

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: SupportsIndex) -> Trial:
        number = operator.index(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"trial {number} of {len(self)}")
        example = self._source[number % len(self)]
        return Trial(
            id=example["id"].decode(),
            animal=self._animal,
            tier=self._tier,
            stimulus=example["stimulus"].astype(np.float32),
            responses=example["responses"],
            behaviour=example["behaviour"],
            withheld=bool(example["withheld"]),
        )


def build_dataset(recording: Recording, data_dir: str | os.PathLike) -> Path:
    """Writes a recording as `data_dir/sensorium_tree/NAME/1.0.0/`, complete or not at all.

    Returns:
      That folder; what is there already is kept, if it was made from the same tree.

    Raises:
      NeuroreconError: a trial can't be read, the folder holds another state of the tree, or it can't be
        written.
    """
    folder = Path(data_dir) / _DATASET / recording.name / _VERSION
    if (folder / "dataset_info.json").is_file():
        made_from = tfds.builder_from_directory(os.fspath(folder)).info.metadata or {}
        if made_from.get("fingerprint") != fingerprint(recording):
            raise NeuroreconError(f"{folder}: was made from another state of {recording.path}; remove it first")
        return folder
    with atomic_path(folder, directory=True) as temporary:
        work = temporary.parent / "work"  # the builder makes folders of its own, which go with the temporary ones
        try:
            builder = SensoriumTree(recording, data_dir=os.fspath(work))
            builder.download_and_prepare()
        except RuntimeError as error:  # what ArrayRecord's writer raises
            line = (str(error).strip().splitlines() or ["no reason given"])[0]
            raise NeuroreconError(
                f"{folder}: could not be written ({line[:200]}); check the free space and the permissions"
            ) from error
        temporary.rmdir()
        Path(builder.data_dir).rename(temporary)
    logging.info("%s: %d trials", folder, recording.num_trials)
    return folder


def open_dataset(folder: str | os.PathLike, tier: str) -> DatasetTrials:
    """The trials of one tier, from the folder that `build_dataset` returned; the tree isn't needed.

    Raises:
      NeuroreconError: no dataset there, an unknown tier, or one without trials.
    """
    check_tier(tier, str(folder))
    if not (Path(folder) / "dataset_info.json").is_file():
        raise NeuroreconError(f"{folder}: expected the folder of a dataset with its dataset_info.json, found none")
    builder = tfds.builder_from_directory(os.fspath(folder))
    present = [t for t, info in builder.info.splits.items() for _ in range(info.num_examples)]
    if tier not in present:
        raise NeuroreconError(nearest_tier_line(tier, present, str(folder)))
    return DatasetTrials(builder.as_data_source(split=tier), builder.info.metadata["animal"], tier)


def _whole_greys(stimulus: np.ndarray) -> bool:
    return bool((stimulus >= 0).all() and (stimulus <= 255).all() and (stimulus == np.floor(stimulus)).all())
