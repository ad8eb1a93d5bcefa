"""A first look: one encoder and a third of the updates, some three minutes of training and seconds a clip.

python -m experiments.reconstruct --config experiments/configs/quick.py --config.recordings=FOLDER --workdir runs/quick

With encoders that are there (--config.encoders=FOLDER) it is the default recipe at a third of its cost.
"""

import ml_collections

from experiments.configs.base import get_config as base


def get_config() -> ml_collections.ConfigDict:
    config = base()
    config.num_models = 1
    config.training.num_steps = 350
    config.training.validation_every = 50
    # Chosen on two development animals, see BUILD_NOTES: 0.02 below the default's movie correlation.
    config.default_recipe.num_steps = 12
    config.default_recipe.learning_rate = 0.6
    config.prior.first_steps = 8
    config.prior.first_exponent = 1.0  # so few updates show no more of fine scales under a whiter prior
    return config
