"""Settings of the whole suite, made before any test imports NumPy, JAX or Matplotlib."""

import os

# The suite runs in several processes at once: each keeps to a thread for linear algebra, to a part of an
# accelerator's memory, and to drawing without a screen. What the caller has set stays.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ.setdefault("MPLBACKEND", "agg")
