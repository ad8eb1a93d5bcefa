"""Every key that a config can have, with its default. The other configs start from here.

python -m experiments.train --config experiments/configs/base.py --workdir runs/mine --config.recordings=FOLDER
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    # What goes in. Lists are comma-separated strings, so that they can be given on the command line.
    config.recordings = ""  # Sensorium trees
    config.encoders = ""  # work folders of trainings, encoder folders or published .pth files; empty: trains first
    config.seed = 0
    # Or the folders of a data set and of its encoders, and what to take from them, in place of the two.
    config.data = ""  # holds a Sensorium tree for each of `animals`
    config.animals = ""
    config.weights = ""  # holds `num_models` published .pth files, at any depth

    # Encoders.
    config.num_models = 2
    config.encoder = "factorized"  # or "linear_nonlinear", "dwiseneuro"; each has its own keys below
    config.factorized = ml_collections.ConfigDict()
    config.factorized.window_frames = 44
    config.factorized.frame_step = 3
    config.factorized.warmup_frames = 8
    config.factorized.features = (32, 32)
    config.factorized.spatial_kernels = (3, 3)
    config.factorized.temporal_kernels = (6, 4)
    config.factorized.strides = (3, 1)
    config.factorized.readout_pool = 1
    config.linear_nonlinear = ml_collections.ConfigDict()
    config.linear_nonlinear.window_frames = 64
    config.linear_nonlinear.rank = 2
    config.linear_nonlinear.num_taps = 15
    config.linear_nonlinear.envelope = 0.0  # pixels; above 0: filters stay near the receptive field
    config.dwiseneuro = ml_collections.ConfigDict()
    config.dwiseneuro.core_features = (16, 16, 32, 32)
    config.dwiseneuro.spatial_strides = (2, 1, 2, 1)
    config.dwiseneuro.expansion_ratio = 4
    config.dwiseneuro.se_reduce_ratio = 8
    config.dwiseneuro.cortex_features = (128, 256)
    config.dwiseneuro.drop_rate = 0.4
    config.dwiseneuro.drop_path_rate = 0.1
    config.training = ml_collections.ConfigDict()
    config.training.num_steps = 2000
    config.training.batch_size = 6
    config.training.optimiser = "muon"  # Muon for the kernels of convolutions, AdamW for the rest; or "adamw"
    config.training.learning_rate = 0.06  # of AdamW
    config.training.kernel_rate = 0.16  # of Muon
    config.training.warmup_steps = 30
    config.training.weight_decay = 0.01
    config.training.position_rate = 0.1
    config.training.ema_decay = 0.98
    config.training.ema_warmup = True  # False: constant decay, as published
    config.training.cutmix_probability = 0.0
    config.training.cutmix_variant = "plain"  # or "published": a box for each window, behaviour cut as the movie is
    config.training.mixup_probability = 0.0
    config.training.validation_every = 100
    config.training.validation_trials = 8
    config.training.balanced = True
    config.training.accumulate = 1  # pieces of a batch, one after another, to fit memory
    config.training.precision = "float32"  # of activations; or "bfloat16"
    config.training.shard = ""  # over all devices: "windows" of a batch, "models" of the ensemble, or "both"
    config.training.core_from = ""  # work folder of trained encoders: keeps their core, fits readouts of new animals
    config.validation_tier = "train"  # "train": `validation_trials` of the training trials are held out

    # Reconstruction.
    config.tier = "oracle"
    config.trials = ""  # empty: every trial of the tier
    config.fold = -1  # of the published perceptual-hash folds: takes its trials in place of a tier's; -1: none
    config.fold_clips = ""  # places in the fold, "ANIMAL: 0 1 2, OTHER: 0 1 3"; empty: all
    config.max_clips = 0  # 0: no limit
    config.responses = "recorded"  # or "predicted": the encoders' mean, from the true movie; an upper bound
    config.neurons = ml_collections.ConfigDict()
    config.neurons.share = 1.0  # each neuron is kept with this probability, drawn anew for each clip
    config.neurons.seed = 0
    config.neurons.ablation = "exclude"  # the others; or "zero_target": they stay, silent, as published
    config.recipe = "default"  # or "published"
    config.num_steps = 0  # 0: the recipe's
    config.default_recipe = ml_collections.ConfigDict()
    # "autoregressive" and "quasi_poisson" measure each neuron's noise on validation trials; or "poisson".
    config.default_recipe.likelihood = "autoregressive"
    config.default_recipe.likelihood_weight = 0.15
    config.default_recipe.learning_rate = 0.4
    config.default_recipe.num_steps = 40
    config.published_recipe = ml_collections.ConfigDict()
    config.published_recipe.learning_rate = 1000.0
    config.published_recipe.ensemble = "movies"  # or "gradients"
    config.published_recipe.smoothing = 0.5
    config.prior = ml_collections.ConfigDict()
    config.prior.mean = "training"  # the mean grey level; or "linear_decoder", the linear decoder's movie of the clip
    config.prior.spectrum = "measured"  # on training movies, or on what the decoder leaves; or "natural" (1/f), "flat"
    config.prior.std = 55.0  # grey values, of "natural" and "flat"
    config.mask = ml_collections.ConfigDict()
    config.mask.kind = "sensitivity"  # or "alpha" (published), or "none"
    config.mask.threshold = 0.3  # of the sensitivity's maximum; the published alpha mask is evaluated at 1
    config.mask.restrict = False  # also keep the update inside the mask (the published recipe always does)
    config.mask.update_threshold = 0.5  # that of the update; published: 0.5, 0 (almost no mask) and 1 (strict)
    config.mask.num_steps = 1000  # of the alpha mask's training
    config.mask.fold = -1  # whose trials train the alpha mask (published: 1); -1: the training trials
    config.mask.files = (
        ""  # folder of masks to take instead: ANIMAL.npz as written here, or mask_mINDEX.npy (published)
    )
    config.calibration_clips = 0  # so many validation clips calibrate the movie, together with the linear decoder's
    config.posterior = ml_collections.ConfigDict()
    config.posterior.samples = 0  # movies drawn from the posterior of each clip, an even number: gives movie_std
    config.posterior.validation_clips = 4  # so many validation clips set the size of movie_std; 0: as it comes
    config.skip_frames = 30  # at the start of each clip, not scored
    config.window_chunk = 0  # windows at once through an encoder, to bound memory; 0: all
    config.steps_per_call = 20
    config.save_movies = False  # also keep each encoder's own movie
    config.variants = ""  # of experiments.bauer2026; empty: all

    # Controls.
    config.controls = "grey,shuffled_neurons,linear_decoder,ceiling"
    config.linear_decoder = ml_collections.ConfigDict()
    config.linear_decoder.num_lags = 15
    config.linear_decoder.lag_step = 3
    config.decodable_fraction = 0.0  # above 0: score on the pixels that the linear decoder decodes best, as a share

    # Simulation.
    config.simulation = ml_collections.ConfigDict()
    config.simulation.animals = "mouse1"
    config.simulation.num_neurons = 500
    config.simulation.train = 100
    config.simulation.oracle = 6
    config.simulation.final_test_main = 0
    config.simulation.repeats = 1  # of each clip that is not for training
    config.simulation.num_frames = 300
    config.simulation.height = 36
    config.simulation.width = 64
    config.simulation.frame_rate = 30.0
    config.simulation.noise_level = 1.0

    config.checkpoint_seconds = 30.0
    return config
