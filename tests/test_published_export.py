"""An encoder trained here goes out in the published layout and comes back bit for bit."""

import dataclasses

import jax
import numpy as np

from neurorecon.encoders import export_published, load_published
from neurorecon.training.trainer import train
from tests.test_distillation import ENCODER, NAMES
from tests.test_training import SETTINGS, animal


def test_a_trained_encoder_comes_back_bit_for_bit(tmp_path):
    encoder = ENCODER.clone(canvas=(8, 8), cortex_features=(4, 6))
    animals = [animal(tmp_path, name, n, k) for k, (name, n) in enumerate(zip(NAMES, encoder.num_neurons))]
    settings = dataclasses.replace(SETTINGS, num_steps=2, batch_size=2, validation_every=2)
    state = train(encoder, animals, settings, num_models=1, seed=0)
    variables = jax.tree.map(lambda x: np.asarray(x[0]), state.variables)
    assert int(variables["batch_stats"]["stem"]["norm"]["count"]) == 4  # two steps of two animals
    export_published(encoder, variables, tmp_path / "trained.pth")
    found, again = load_published(tmp_path / "trained.pth")
    assert found.clone(screen=encoder.screen) == encoder
    for (path, ours), (_, theirs) in zip(
        jax.tree_util.tree_leaves_with_path(variables), jax.tree_util.tree_leaves_with_path(again), strict=True
    ):
        assert ours.dtype == theirs.dtype and ours.tobytes() == np.asarray(theirs).tobytes(), path
