"""As small.py, with DwiseNeuro's core: some 100 trials of 500 neurons, 25 minutes of processor time.

python -m experiments.train --config experiments/configs/small_dwiseneuro.py \\
  --config.recordings=FOLDER --workdir runs/small
"""

import ml_collections

from experiments.configs.small import get_config as small


def get_config() -> ml_collections.ConfigDict:
    config = small()
    config.encoder = "dwiseneuro"
    config.num_models = 2
    # A first look as wide as the factorized encoder's, then two blocks: nothing wide at the movie's own resolution.
    config.dwiseneuro.stem_patch = 3
    config.dwiseneuro.stem_kernel = 3
    config.dwiseneuro.core_features = (32, 32)
    config.dwiseneuro.spatial_strides = (1, 1)
    config.dwiseneuro.temporal_kernel = 7
    config.dwiseneuro.position_code = False
    config.dwiseneuro.behaviour_at = "readout"
    config.dwiseneuro.readout_lag = 3
    config.dwiseneuro.drop_rate = 0.0
    config.dwiseneuro.drop_path_rate = 0.0
    config.training.num_steps = 600
    config.training.learning_rate = 0.06
    config.training.kernel_rate = 0.16
    return config
