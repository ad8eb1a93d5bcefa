"""Which sizes of DwiseNeuro fit together."""

from typing import Any

from neurorecon.errors import NeuroreconError


def check_sizes(encoder: Any) -> None:
    """Raises NeuroreconError with one line where the encoder's sizes don't fit together."""
    e = encoder
    grouped = (e.core_features[-1:], *((f,) for f in e.cortex_features))
    checks = (
        (len(e.num_neurons) > 0 and min(e.num_neurons) > 0, "num_neurons", "one positive count per readout"),
        (len(e.core_features) > 0 and min(e.core_features) > 0, "core_features", "positive widths"),
        (len(e.spatial_strides) == len(e.core_features), "spatial_strides", "one stride per core feature"),
        (min(e.spatial_strides, default=0) > 0, "spatial_strides", "positive strides"),
        (e.spatial_kernel > 0 and e.spatial_kernel % 2 == 1, "spatial_kernel", "an odd size"),
        (e.temporal_kernel > 0 and e.temporal_kernel % 2 == 1, "temporal_kernel", "an odd size"),
        (e.expansion_ratio > 0, "expansion_ratio", "a positive whole number"),
        (
            0 < e.se_reduce_ratio <= min(e.core_features, default=0) * e.expansion_ratio,
            "se_reduce_ratio",
            "at most the narrowest expanded width",
        ),
        (min(e.cortex_features, default=1) > 0, "cortex_features", "positive widths"),
        (
            e.groups > 0 and all(f[0] % e.groups == 0 for f in grouped),
            "groups",
            "a divisor of the last core width and of every cortex width",
        ),
        (e.softplus_beta > 0, "softplus_beta", "a positive number"),
        (e.readout_kind in ("published", "gaussian"), "readout_kind", "published or gaussian"),
        (
            e.readout_kind == "published" or tuple(e.canvas) == tuple(e.screen or ()),
            "canvas",
            f"the screen, {e.screen}, with the gaussian readout",
        ),
        (e.stem_patch > 0, "stem_patch", "a positive number of pixels"),
        (e.stem_kernel > 0 and e.stem_kernel % 2 == 1, "stem_kernel", "an odd size"),
        (e.behaviour_at in ("inputs", "readout"), "behaviour_at", "inputs or readout"),
        (0 <= e.readout_lag < e.window_frames, "readout_lag", f"0 to {e.window_frames - 1} frames"),
        *(
            (e.readout_kind == "gaussian" or getattr(e, name) == published, name, f"{published}, as published")
            for name, published in (
                ("stem_patch", 1),
                ("stem_kernel", 1),
                ("position_code", True),
                ("behaviour_at", "inputs"),
                ("readout_lag", 0),
                ("stimulus_mean", 0.0),
                ("stimulus_std", 1.0),
                ("behaviour_mean", (0.0,) * 4),
                ("behaviour_std", (1.0,) * 4),
            )
        ),
        (0 <= e.drop_rate < 1, "drop_rate", "0 <= rate < 1"),
        (0 <= e.drop_path_rate < 1, "drop_path_rate", "0 <= rate < 1"),
    )
    for fits, name, expected in checks:
        if not fits:
            raise NeuroreconError(f"DwiseNeuro.{name}: expected {expected}, found {getattr(e, name)}")
