"""Seconds a clip where clips are reconstructed together: how many in one compiled call, one after another or batched.

    python -m benchmarks.clips_together --clips 1,2,4,8
    python -m benchmarks.clips_together --clips 2,4 --cpu_devices 2

The default recipe on random encoders and one random trial, copied; every number of clips, turn by turn. The first call
of each, which compiles, is timed on its own: a group is compiled once for all clips of its length. With several devices
they share the clips. `batched` is what accelerators do by default, `in turn` what processors do.
"""

import argparse
import contextlib
import os
import statistics
import time
from typing import Any

import jax
import numpy as np

from benchmarks import speed
from benchmarks.accelerator import Enough, enough
from neurorecon.errors import NeuroreconError
from neurorecon.reconstruction import default_recipe, reconstruct_clips


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", choices=sorted(speed.SIZES), default="small")
    parser.add_argument("--clips", default="1,2,4,8")
    parser.add_argument("--models", type=int, default=2)
    parser.add_argument("--frames", type=int, default=96)
    parser.add_argument("--steps", type=int, default=4, help="updates of each clip (default 4)")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--cpu_devices", type=int, default=1)
    parser.add_argument("--ways", default="in turn,batched")
    options = parser.parse_args()
    if options.cpu_devices > 1:
        jax.config.update("jax_num_cpu_devices", options.cpu_devices)
    numbers = [int(n) for n in options.clips.split(",")]
    ways = [way.strip() for way in options.ways.split(",")]
    try:
        if min(*numbers, options.turns, options.steps, options.models) < 1 or not set(ways) <= {"in turn", "batched"}:
            raise NeuroreconError("expected numbers of 1 or more, and ways 'in turn' or 'batched'")
        device = f"jax {jax.__version__}, {jax.devices()[0].device_kind} x {jax.device_count()}"
        print(f"{options.size}, {options.models} models, {options.frames} frames, {options.steps} updates; {device}")
        print(f"{len(os.sched_getaffinity(0))} cores")
        encoders, trial = speed.alone(speed.SIZES[options.size], options.frames, options.models)
        shard = "clips" if options.cpu_devices > 1 else ""

        def descend(number: int, way: str, **changes: Any) -> float:
            given = [np.stack([x] * number) for x in (trial.responses, trial.behaviour)]
            start = time.perf_counter()
            with contextlib.suppress(Enough):
                reconstruct_clips(
                    encoders,
                    *given,
                    recipe=default_recipe(num_steps=options.steps),
                    key=jax.random.key(0),
                    parallel=way == "batched",
                    shard=shard,
                    **changes,
                )
            return time.perf_counter() - start

        cases = [(number, way) for number in numbers for way in ways]
        first = {case: descend(*case, on_call=enough) for case in cases}
        times: dict[tuple[int, str], list[float]] = {case: [] for case in cases}
        for _ in range(options.turns):
            for case in cases:
                times[case].append(descend(*case) / case[0])
        print(f"{'':20}{'s a clip':>10}{'least':>9}{'most':>9}{'/ first':>9}{'first call, s':>15}")
        reference = statistics.median(times[cases[0]])
        for (number, way), values in times.items():
            median = statistics.median(values)
            print(
                f"{f'{number} {way}':20}{median:10.4g}{min(values):9.4g}{max(values):9.4g}{median / reference:9.3g}"
                f"{first[number, way]:15.4g}"
            )
    except NeuroreconError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
