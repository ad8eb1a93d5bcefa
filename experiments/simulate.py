"""Writes simulated animals: natural movies seen by a simulated visual cortex, as Sensorium trees.

    python -m experiments.simulate --config experiments/configs/demo.py --workdir runs/demo

Writes WORKDIR/recordings/ANIMAL/ and WORKDIR/expected/ANIMAL/TRIAL.npy, the true expected response (time, neuron). The
cortex is none of our encoders; meta/recording.json tells where its receptive fields truly are. An animal that is there
is kept; the same seed gives the same bytes.
"""

from pathlib import Path

import ml_collections
import numpy as np
from tqdm import tqdm

from experiments import cli
from neurorecon import runs
from neurorecon.errors import NeuroreconError
from neurorecon.files import save_npy
from neurorecon.recordings import write_sensorium
from neurorecon.simulation.animal import make_animal, plan_trials, simulate_planned
from neurorecon.simulation.retinotopy import cortical_positions

TIERS = ("train", "oracle", "final_test_main")


def simulate(config: ml_collections.ConfigDict, workdir: str) -> list[Path]:
    """Simulates every animal of `config.simulation`; returns their folders.

    Raises:
      NeuroreconError: bad config, or the folder can't be written.
    """
    s = config.simulation
    names = cli.listed(s.animals)
    if not names:
        raise NeuroreconError("--config.simulation.animals: expected one or more names, found none")
    for key in ("num_neurons", "train", "num_frames", "height", "width", "frame_rate"):
        if s[key] <= 0:
            raise NeuroreconError(f"--config.simulation.{key}: expected more than 0, found {s[key]}")
    folder = runs.claim(workdir, config.to_dict(), "simulate", ("simulation", "seed"))
    trees = []
    for index, name in enumerate(names):
        tree = folder / "recordings" / name
        trees.append(tree)
        if tree.exists():
            print(f"{tree}: is there")
            continue
        animal = make_animal(
            config.seed + index,
            num_neurons=s.num_neurons,
            height=s.height,
            width=s.width,
            frame_rate=s.frame_rate,
            name=name,
        )
        counts = {tier: s[tier] for tier in TIERS if s[tier] > 0}
        repeats = {tier: s.repeats for tier in counts if tier != "train"}
        plans = list(plan_trials(counts, repeats))

        def trials(animal=animal, plans=plans, name=name):
            for plan in tqdm(plans, desc=f"simulate {name}", unit="trial", mininterval=2.0):
                trial, expected = simulate_planned(animal, plan, num_frames=s.num_frames, noise_level=s.noise_level)
                save_npy(folder / "expected" / name / f"{trial.id}.npy", expected.astype(np.float32))
                yield trial

        write_sensorium(
            tree,
            trials(),
            cell_motor_coordinates=cortical_positions(animal.population, config.seed + index),
            frame_rate=s.frame_rate,
            extra={
                "simulated": True,
                "seed": config.seed + index,
                "noise_level": s.noise_level,
                # Row and column of each receptive field's true centre, pixels from the upper left corner.
                "receptive_field_centres": np.round(animal.population.centre, 3).tolist(),
            },
        )
        print(f"{tree}: written")
    return trees


def main(config: ml_collections.ConfigDict, workdir: str) -> None:
    simulate(config, workdir)


if __name__ == "__main__":
    cli.run(main, __doc__, config="experiments/configs/demo.py")
