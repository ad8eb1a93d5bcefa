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
    config.dwiseneuro.readout_kind = "gaussian"  # learns from few trials; or "published", on a square canvas
    # With the gaussian readout, see DwiseNeuro: the stem's patches, where behaviour enters, what the readout sees.
    config.dwiseneuro.stem_patch = 1
    config.dwiseneuro.stem_kernel = 1
    config.dwiseneuro.position_code = True
    config.dwiseneuro.behaviour_at = "inputs"  # or "readout"
    config.dwiseneuro.readout_lag = 0
    config.dwiseneuro.window_frames = 32  # published: 16
    config.dwiseneuro.frame_step = 3  # published: 2
    config.dwiseneuro.core_features = (8, 16, 32, 32)
    config.dwiseneuro.spatial_strides = (3, 1, 1, 1)
    config.dwiseneuro.spatial_kernel = 3
    config.dwiseneuro.temporal_kernel = 5
    config.dwiseneuro.expansion_ratio = 4
    config.dwiseneuro.se_reduce_ratio = 8
    config.dwiseneuro.cortex_features = (128, 256)  # of the published readout
    config.dwiseneuro.drop_rate = 0.1  # published: 0.4
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
    config.training.readout_rate = 1.0  # DwiseNeuro's published readout needs about 10
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
    config.training.distil_from = ""  # work folders of trained encoders: fill in the other animals' responses
    config.training.distil_ratio = 0.36  # share of the loss that their predictions have
    config.hosts = ""  # or "auto": the same command on several hosts is one run, of experiments.train or .reconstruct
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
    config.neurons.count = 0  # in place of the share: so many; 0: the share
    # Which are kept: "random"; "most_reliable" or "least_reliable", by the encoders' correlation on validation trials.
    config.neurons.order = "random"
    config.neurons.seed = 0
    config.neurons.ablation = "exclude"  # the others; or "zero_target": they stay, silent, as published
    config.behaviour = ml_collections.ConfigDict()
    config.behaviour.given = "recorded"  # "shuffled": another training trial's; "mean": of the training trials
    config.behaviour.seed = 0  # of the shuffling
    config.members = ""  # places of the encoders to use, "0,2"; empty: all
    config.recipe = "default"  # or "published"
    config.stop = ml_collections.ConfigDict()  # of a descent, early; each clip by itself
    config.stop.held_out = (
        0.0  # share of the neurons that are not descended to, and end it once predicted no better; 0: never
    )
    config.stop.patience = 100  # updates to wait for a better prediction
    config.num_steps = 0  # 0: the recipe's
    config.default_recipe = ml_collections.ConfigDict()
    # See neurorecon.reconstruction.likelihoods; all but "poisson" are fitted to validation trials.
    config.default_recipe.likelihood = "autoregressive"
    # Divided by the encoders' frame_step: interleaved streams of frames say the same, and are no news of their own.
    config.default_recipe.likelihood_weight = 0.45
    config.default_recipe.learning_rate = 0.4
    config.default_recipe.num_steps = 40
    config.published_recipe = ml_collections.ConfigDict()
    config.published_recipe.learning_rate = 1000.0
    config.published_recipe.ensemble = "movies"  # or "gradients"
    config.published_recipe.smoothing = 0.5
    config.prior = ml_collections.ConfigDict()
    # The mean grey level; or a decoder's movie of the clip: "linear_decoder", "convolutional_decoder".
    config.prior.mean = "training"
    config.prior.spectrum = "measured"  # on training movies, or on what the decoder leaves; or "natural" (1/f), "flat"
    config.prior.std = 55.0  # grey values, of "natural" and "flat"
    # Each clip's spectrum is estimated from a first reconstruction, see neurorecon.reconstruction.adaptation; so many
    # validation clips tell what such a one shows of a movie. 0: one spectrum for all clips.
    config.prior.adapt_clips = 8
    config.prior.first_steps = 20  # updates of the first reconstruction
    config.prior.first_exponent = 0.8  # of the variances of its prior, which is whiter so that fine scales show in it
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
    config.window_chunk = 0  # windows at once through an encoder, at most; 0: 1 on CPU, elsewhere what memory holds
    config.memory_gib = 0.0  # of each device, for that choice; 0: what the device says
    config.precision = "float32"  # of the encoders' activations in a descent; or "bfloat16"
    config.compilation_cache = ""  # folder in which compiled code is kept for later processes; empty: nowhere
    config.steps_per_call = 20
    config.clips_at_once = 0  # in one compiled call; 0: 1 on CPU, elsewhere up to 8 for each device that shares them
    config.length_bucket = 30  # frames: lengths up to the same multiple share compiled code; 0: each has its own
    config.job = ""  # "2/8": this process makes its eighth of the movies of a common work folder
    config.shard = ""  # over all devices: "clips", "models" of the ensemble, "windows" of a step, or "auto"
    config.cpu_devices = 1  # that JAX makes of the processor, with a share of its cores each; 0: one for each core
    config.save_movies = False  # also keep each encoder's own movie
    config.variants = ""  # of experiments.bauer2026; empty: all

    # Controls.
    config.controls = "grey,prior_alone,shuffled_neurons,linear_decoder,ceiling"
    config.linear_decoder = ml_collections.ConfigDict()
    config.linear_decoder.num_lags = 15
    config.linear_decoder.lag_step = 3
    config.linear_decoder.square_root = True  # of the responses, where none in training is negative
    config.decodable_fraction = 0.0  # above 0: score on the pixels that the linear decoder decodes best, as a share

    # Studies.
    config.screen = ml_collections.ConfigDict()  # flat, its centre nearest to the eye
    config.screen.width_cm = 56.5  # with distance_cm, the published 3.4 degrees a pixel of 64 across
    config.screen.distance_cm = 15.0

    # Part of each recording, for learning curves.
    config.subset = ml_collections.ConfigDict()
    config.subset.trials = 1.0  # share of the training trials
    config.subset.neurons = 1.0  # share of the neurons
    config.subset.seed = 0  # of the draws; a smaller share is part of a larger one
    config.evaluation = ml_collections.ConfigDict()
    config.evaluation.linear_nonlinear = ""  # its work folder; "train": trains it in WORKDIR/linear_nonlinear
    config.learning_curves = ml_collections.ConfigDict()
    config.learning_curves.trials = "0.25,0.5,1"  # shares of the training trials, with all neurons
    config.learning_curves.neurons = "0.25,0.5,1"  # shares of the neurons, with all trials
    config.learning_curves.num_steps = 120  # of each training

    config.match = ml_collections.ConfigDict()
    config.match.max_lag = 10  # frames to either side
    config.match.segment_seconds = 2.0  # of the spectra; its inverse is their resolution in Hz
    config.match.candidates = 100  # movies of the recording that might have been shown, the true one among them

    config.resolution = ml_collections.ConfigDict()
    config.resolution.predictors = ""  # work folders of encoders that predict; empty: the last half of the ensemble
    config.resolution.num_frames = 90  # of each stimulus
    config.resolution.noise_spatial = "0,1,2,4,8"  # length constants, pixels
    config.resolution.noise_temporal = "0,1,2,4"  # frames
    config.resolution.noise_repeats = 2  # draws of each
    config.resolution.grating_spatial = "0.018,0.036,0.071,0.143"  # cycles/degree
    config.resolution.grating_temporal = "0,1.875,3.75,7.5"  # Hz
    config.resolution.directions = 4  # of each grating
    config.resolution.inverted = 1  # so many of each condition's stimuli are also shown with black and white exchanged
    config.resolution.noise_matched = 1  # so many also from noisy responses
    config.ceiling = ml_collections.ConfigDict()
    config.ceiling.predictors = ""  # as resolution.predictors
    config.ceiling.other_architecture = "train"  # work folder of such encoders; "train": trains one; empty: left out
    config.ceiling.num_clips = 6  # of the tier; 0: all

    config.receptive_fields = ml_collections.ConfigDict()
    config.receptive_fields.spot_pixels = 2  # side of the squares shown; 1: single pixels, as published
    config.receptive_fields.smoothing = 1.0  # of the maps, in squares; published: 2 (of single pixels)
    config.receptive_fields.published = False  # quirks: change since before the square, grey padding, stored means
    config.receptive_fields.keep_responses = False  # of every encoder, 24 bytes for each square and neuron
    config.receptive_fields.chunk = 32  # squares on the device at once
    config.receptive_fields.permutations = 1000  # of the neurons, for the p-value of the retinotopy

    config.ensemble_size = ml_collections.ConfigDict()
    config.ensemble_size.sizes = ""  # numbers of encoders, "1,2,4"; empty: from one to all
    config.ensemble_size.subsets = 3  # draws of encoders for each size, at most
    config.ensemble_size.seed = 0
    config.ensemble_size.max_clips = 4  # 0: all
    config.ablation = ml_collections.ConfigDict()
    config.ablation.shares = "0.125,0.25,0.5,1"  # of the neurons
    config.ablation.counts = ""  # numbers of neurons, in place of shares
    config.ablation.orders = "random,most_reliable"  # or "least_reliable"
    config.ablation.draws = 2  # of random neurons, for each share
    config.ablation.max_clips = 4  # 0: all
    config.behaviour_max_clips = 8  # of experiments.behaviour; 0: all
    config.masks = ml_collections.ConfigDict()
    config.masks.strict = 0.6  # threshold of the strict mask; that of the standard one is mask.threshold
    config.masks.thresholds = "0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9"  # of the sweep
    config.masks.max_clips = 4  # 0: all

    config.convolutional_decoder = ml_collections.ConfigDict()  # of experiments.convolutional_decoder
    config.convolutional_decoder.num_lags = 15  # frames of responses, as linear_decoder.num_lags
    config.convolutional_decoder.lag_step = 3  # frames in a feature, and the network's time step
    config.convolutional_decoder.folds = 4  # of the training trials, each decoded linearly from the others
    config.convolutional_decoder.patch = 2  # pixels, squared, in a cell of the network
    config.convolutional_decoder.features = 24  # channels
    config.convolutional_decoder.maps = 8  # channels that neurons are projected onto
    config.convolutional_decoder.dilations = (1, 2, 4)  # of the spatial convolutions, in cells
    config.convolutional_decoder.temporal_taps = 5
    config.convolutional_decoder.dropout = 0.3  # of neurons
    config.convolutional_decoder.num_steps = 400
    config.convolutional_decoder.batch_size = 1  # trials
    config.convolutional_decoder.learning_rate = 0.003  # of AdamW
    config.convolutional_decoder.kernel_rate = 0.02  # of Muon
    config.convolutional_decoder.weight_decay = 0.01
    config.convolutional_decoder.validation_every = 50

    config.tune = ml_collections.ConfigDict()
    config.tune.clips = 4  # validation clips to score on, 2 at least; never of the tier that is reported
    config.tune.likelihoods = "autoregressive,quasi_poisson,autoregressive_gain,negative_binomial,gamma_with_zeros"
    config.tune.likelihood_weights = "0.11,0.22,0.45,0.9,1.8"
    config.tune.learning_rates = "0.2,0.4,0.8"
    config.tune.num_steps = "20,40,80"
    config.tune.spectra = "measured"  # or also "natural", "flat"

    config.deviation = ml_collections.ConfigDict()
    config.deviation.statistic = "score"  # of contrast, in response space; or "reconstruction"
    config.deviation.shared_gain_seconds = 3.0  # shortest period of the gain that neurons may share; 0: none
    config.deviation.samples = 4  # draws of simulated responses for each clip
    config.deviation.validation_clips = 8  # at most; they make the null distribution
    config.deviation.rate = 0.05  # of false discoveries
    config.deviation.window_seconds = 3.0  # sigma of the windows in time
    config.deviation.window_pixels = 4.0  # in space
    config.deviation.detail_pixels = 6.0  # sigma of the local mean that is taken off first

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
