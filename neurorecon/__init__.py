"""Reconstruct the movie an animal saw from the activity of its neurons."""

__version__ = "0.1.0"
