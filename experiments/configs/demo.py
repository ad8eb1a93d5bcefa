"""The embedded default: a simulated mouse, no download.

make demo
"""

import ml_collections

from experiments.configs.base import get_config as base


def get_config() -> ml_collections.ConfigDict:
    config = base()
    config.num_models = 3
    config.factorized.features = (16, 24)
    config.training.num_steps = 300
    config.training.validation_every = 100
    return config
