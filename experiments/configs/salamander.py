"""177 salamander retinal ganglion cells and white noise (Liu et al. 2017): encoder, movie, scores.

D=../shared/recordings/salamander_retina
python -m experiments.import_arrays --output runs/salamander/recordings/salamander --frame_rate 30 --pool 4 \\
  --stimulus $D/stim_crop80x80_bits_36000x800.npy --packed_bits_shape 80,80 --stimulus_axes time,width,height \\
  --responses $D/spikecounts_177x36000_u8.npy --response_axes neuron,time --trial_frames 1470 --lead_in 30 --gap 70 \\
  --splits train=0:30000,oracle=27100:29980,final_test_main=30100:35980
python -m experiments.train --config experiments/configs/salamander.py --workdir runs/salamander
python -m experiments.reconstruct --config experiments/configs/salamander.py --workdir runs/salamander
python -m experiments.evaluate --workdir runs/salamander

Trains on frames 0..26,999; frames 27,100..29,979 choose these settings, the best moment of training, the penalty of the
linear decoder and the quarter of the pixels that it decodes best; reconstructs frames 30,100..35,979.
A minute to train and half a minute to reconstruct on two cores. Expected: movie correlation 0.14, smoothed 0.24; the
linear decoder has 0.090 to 0.093 and 0.174 to 0.187 on the same pixels and frames.
"""

import ml_collections

from experiments.configs.base import get_config as base


def get_config() -> ml_collections.ConfigDict:
    config = base()
    config.recordings = "runs/salamander/recordings/salamander"
    config.num_models = 1
    config.encoder = "linear_nonlinear"
    config.linear_nonlinear.window_frames = 200
    config.linear_nonlinear.rank = 1  # a second space-time product fits noise: 4 % lower validation likelihood
    config.linear_nonlinear.num_taps = 20
    config.linear_nonlinear.envelope = 2.0  # pixels of 4 x 4 checkers
    config.training.num_steps = 300
    config.training.batch_size = 8
    config.training.optimiser = "adamw"
    config.training.learning_rate = 5e-3
    config.training.warmup_steps = 10
    config.training.ema_decay = 0.95
    config.training.validation_every = 50
    config.validation_tier = "oracle"

    config.tier = "final_test_main"
    config.default_recipe.likelihood = "poisson"
    config.default_recipe.likelihood_weight = 1.0  # spikes are counts and the prior is true: nothing to temper
    config.default_recipe.learning_rate = 0.1
    config.num_steps = 40
    config.prior.mean = "training"
    config.prior.spectrum = "flat"  # white noise
    config.prior.adapt_clips = 0  # and no other clip has another
    config.prior.std = 31.875  # 16 black or white checkers in a pixel: 127.5 / 4
    config.mask.kind = "none"
    config.skip_frames = 30  # the lead-in
    config.linear_decoder.num_lags = 16
    config.linear_decoder.lag_step = 1
    config.linear_decoder.square_root = False  # the published figures are of spike counts
    config.decodable_fraction = 0.25
    return config
