"""Stimuli made from numbers: natural movies, gratings, noise, single pixels. NumPy and SciPy only."""
