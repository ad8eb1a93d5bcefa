"""A simulated mouse visual cortex and its recording, independent of every encoder. NumPy and SciPy only."""
