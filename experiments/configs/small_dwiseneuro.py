"""As small.py, with DwiseNeuro's core: some 100 trials of 500 neurons, half an hour on two cores.

python -m experiments.train --config experiments/configs/small_dwiseneuro.py \\
  --config.recordings=FOLDER --workdir runs/small
"""

import ml_collections

from experiments.configs.small import get_config as small


def get_config() -> ml_collections.ConfigDict:
    config = small()
    config.encoder = "dwiseneuro"
    config.num_models = 2
    config.training.num_steps = 800
    config.training.batch_size = 4
    config.training.learning_rate = 0.06
    config.training.kernel_rate = 0.16
    return config
