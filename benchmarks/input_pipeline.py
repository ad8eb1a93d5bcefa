"""How fast random windows come off the disk: prepared memory-mapped arrays against TFDS / ArrayRecord.

  python -m benchmarks.input_pipeline [--trials 60] [--neurons 2000] [--batches 20]

Writes a random recording in a temporary folder (60 trials x 300 frames x 36 x 64 pixels x 2,000 neurons: 0.2
to 0.3 GB each way), then draws batches of 32 windows of 16 frames, step 2, uniformly over all legal windows.
Prints the median time of a batch, windows a second and the ratio to the memory-mapped arrays, for these, for
the tree's own .npy files, for ArrayRecord, and for ArrayRecord through grain with a thread for each core.
Files stay in the page cache: this measures copying and decoding, the part that more memory doesn't mend.
"""

import argparse
import importlib.metadata
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from neurorecon.recordings import PreparedRecording, Trial, open_recording, prepare, write_sensorium
from neurorecon.recordings.tfds_builder import DatasetTrials, build_dataset, open_dataset

FRAMES, HEIGHT, WIDTH = 300, 36, 64
BATCH, WINDOW, STEP = 32, 16, 2


def random_trials(num_trials: int, num_neurons: int) -> Iterator[Trial]:
    for number in range(num_trials):
        rng = np.random.default_rng(number)
        yield Trial(
            id=str(number),
            animal="random",
            tier="train",
            stimulus=rng.integers(0, 256, (FRAMES, HEIGHT, WIDTH)).astype(np.float32),
            responses=rng.gamma(0.5, 1.0, (FRAMES, num_neurons)).astype(np.float32),
            behaviour=rng.normal(size=(FRAMES, 4)).astype(np.float32),
        )


def cut(trial: Trial, start: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    frames = slice(start, start + (WINDOW - 1) * STEP + 1, STEP)
    return trial.stimulus[frames], trial.responses[frames], trial.behaviour[frames]


def from_prepared(prepared: PreparedRecording, windows: np.ndarray) -> Callable[[int], tuple]:
    return lambda batch: prepared.gather(windows[batch * BATCH : (batch + 1) * BATCH], WINDOW, STEP)


def from_trials(trial: Callable[[int], Trial], windows: np.ndarray) -> Callable[[int], tuple]:
    def read(batch: int) -> tuple:
        parts = [cut(trial(number), start) for number, start in windows[batch * BATCH : (batch + 1) * BATCH]]
        return tuple(np.stack(arrays) for arrays in zip(*parts, strict=True))

    return read


def from_grain(trials: DatasetTrials, windows: np.ndarray, threads: int) -> Callable[[int], tuple]:
    import grain

    class Source:
        def __len__(self) -> int:
            return len(windows)

        def __getitem__(self, index: int) -> tuple:
            return cut(trials[windows[index, 0]], int(windows[index, 1]))

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * BATCH)
    iterator = iter(grain.MapDataset.source(Source()).batch(BATCH).to_iter_dataset(options))
    return lambda batch: next(iterator)


def seconds_per_batch(read: Callable[[int], tuple], batches: int) -> list[float]:
    """Times `batches` reads after one that warms up."""
    times = []
    for batch in range(batches + 1):
        begin = time.perf_counter()
        read(batch)
        times.append(time.perf_counter() - begin)
    return times[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--neurons", type=int, default=2000)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--folder", default=None, help="where to write (default: the system's temporary folder)")
    arguments = parser.parse_args()
    packages = ["numpy", "tensorflow-datasets", "array-record"]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        begin = time.perf_counter()
        write_sensorium(folder / "random", random_trials(arguments.trials, arguments.neurons))
        print(f"tree written in {time.perf_counter() - begin:.1f} s")
        recording = open_recording(folder / "random")
        begin = time.perf_counter()
        prepared = prepare(recording, folder / "prepared")
        print(f"prepared in {time.perf_counter() - begin:.1f} s")
        begin = time.perf_counter()
        trials = open_dataset(build_dataset(recording, folder / "dataset"), "train")
        print(f"dataset built in {time.perf_counter() - begin:.1f} s")
        windows = np.random.default_rng(0).permutation(prepared.windows("train", WINDOW, STEP))
        readers = {
            "prepared (memory-mapped)": from_prepared(prepared, windows),
            "Sensorium tree (.npy)": from_trials(lambda number: recording.trial(str(number)), windows),
            "TFDS / ArrayRecord": from_trials(trials.__getitem__, windows),
        }
        expected = readers["prepared (memory-mapped)"](0)
        for ours, theirs in zip(expected, readers["TFDS / ArrayRecord"](0), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        try:
            readers["TFDS / ArrayRecord, grain"] = from_grain(trials, windows, threads=os.cpu_count() or 1)
            packages.append("grain")
        except ImportError:
            print("grain isn't installed: left out")
        print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; ", end="")
        print(", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages))
        print(f"{arguments.trials} trials, {arguments.neurons} neurons, {BATCH} x {WINDOW} frames a batch")
        best = None
        for name, read in readers.items():
            median = statistics.median(seconds_per_batch(read, arguments.batches))
            best = best or median
            print(f"{name:28s} {1e3 * median:9.2f} ms {BATCH / median:9.0f} windows/s  x {median / best:.1f}")


if __name__ == "__main__":
    main()
