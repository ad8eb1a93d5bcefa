"""From nothing to a scored movie and a report: simulates an animal, trains encoders, reconstructs unseen clips.

    make demo        (or: python -m experiments.demo --workdir runs/demo)

Needs no download and no GPU; about ten minutes on two free cores. Killed and called again, it goes on where it was.
"""

import time
from pathlib import Path

import ml_collections

from experiments import cli
from experiments.evaluate import table
from experiments.evaluate_encoders import evaluate_encoders
from experiments.reconstruct import reconstruct_recordings
from experiments.report import report
from experiments.simulate import simulate


def main(config: ml_collections.ConfigDict, workdir: str) -> None:
    started = time.monotonic()
    print("1 of 3: simulates an animal that watches natural movies")
    config.recordings = ",".join(str(tree) for tree in simulate(config, workdir))
    print("2 and 3 of 3: trains encoders, then reconstructs clips that they have not seen, and the controls")
    metrics = reconstruct_recordings(config, workdir, films=False)
    evaluate_encoders(workdir, config)
    report(workdir)
    print()
    print("Simulated animal: a model cortex that is none of our encoders, single trials, clips unseen in training.")
    print(table(metrics))
    print(f"  {time.monotonic() - started:.0f} s in all")
    print(f"Films, mask, curves and all numbers: {Path(workdir) / 'report.html'}")


if __name__ == "__main__":
    cli.run(main, __doc__, config="experiments/configs/demo.py")
