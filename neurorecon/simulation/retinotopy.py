"""Where the simulated neurons lie in the cortex: a smooth map of the visual field, with scatter.

Drawn from a stream of its own: no other number of the animal depends on it.
"""

import numpy as np

from neurorecon.simulation.cortex import Population

MICROMETRES_PER_DEGREE = 13.0  # Schuett et al. 2002: 10 to 15 in mouse V1
ROTATION = np.pi / 6  # of the camera against the map's axes
SCATTER_DEGREES = 5.0  # Bonin et al. 2011: neighbours look about half a receptive field apart
DEPTH = (150.0, 350.0)  # micrometres, layer 2/3


def cortical_positions(population: Population, seed: int) -> np.ndarray:
    """(neuron, 3) micrometres: two along the surface, then depth. The same seed gives the same positions."""
    rng = np.random.default_rng([0x726574, seed])
    degrees = (population.centre - [population.height / 2, population.width / 2]) * population.degrees_per_pixel
    scattered = degrees + rng.normal(0.0, SCATTER_DEGREES, degrees.shape)
    turn = np.array([[np.cos(ROTATION), -np.sin(ROTATION)], [np.sin(ROTATION), np.cos(ROTATION)]])
    surface = MICROMETRES_PER_DEGREE * scattered[:, ::-1] @ turn.T
    return np.column_stack([surface, rng.uniform(*DEPTH, len(surface))]).astype(np.float32)
