"""Encoders for a small recording: some 100 trials of 500 neurons, half an hour on two cores.

python -m experiments.train --config experiments/configs/small.py --config.recordings=FOLDER --workdir runs/small
"""

import ml_collections

from experiments.configs.base import get_config as base


def get_config() -> ml_collections.ConfigDict:
    config = base()
    # Chosen on validation trials of the simulated animal of seed 301, see BUILD_NOTES.
    config.simulation.num_neurons = 500
    config.simulation.oracle = 8
    config.num_models = 4
    config.training.num_steps = 700
    config.training.learning_rate = 0.12
    config.training.kernel_rate = 0.32
    config.training.ema_decay = 0.99
    return config
