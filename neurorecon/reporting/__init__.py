"""Films, figures and one HTML page from a work folder. Computes no model output."""

from neurorecon.reporting.figures import film_strip, scores_figure, spread_frames
from neurorecon.reporting.movies import write_gif, write_movie, write_tiff
from neurorecon.reporting.page import ReportClip, load_clip, write_report
from neurorecon.reporting.panels import difference_panel, uncertainty_panel

__all__ = [
    "ReportClip",
    "difference_panel",
    "film_strip",
    "load_clip",
    "scores_figure",
    "spread_frames",
    "uncertainty_panel",
    "write_gif",
    "write_movie",
    "write_report",
    "write_tiff",
]
