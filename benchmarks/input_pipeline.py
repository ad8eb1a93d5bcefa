"""What feeding a training costs: the formats side by side, and how long a device waits at the real size.

  python -m benchmarks.input_pipeline [--trials 60] [--neurons 2000] [--batches 20]
  python -m benchmarks.input_pipeline --waiting [--trials 700] [--neurons 8000] [--batches 20] [--device_ms 300]

The first writes a random recording in a temporary folder (60 trials x 300 frames x 36 x 64 pixels x 2,000 neurons: 0.2
to 0.3 GB each way), then draws batches of 32 windows of 16 frames, step 2, uniformly over all legal windows.
Prints the median time of a batch, windows a second and the ratio to the memory-mapped arrays, for these, for
the tree's own .npy files, for ArrayRecord, and for ArrayRecord through grain with a thread for each core.
Files stay in the page cache: this measures copying and decoding, the part that more memory doesn't mend.

The second writes one animal of the real size (a tree of 8.7 GB, and as much again prepared, less with fewer --trials),
prepares and verifies it, and then, each in a process of its own, with the prepared files in the page cache (warm) and
dropped from it (cold), for the windows of the published encoder and of the factorized one:
  - how long a batch takes to draw, alone;
  - the share of the time that a device would wait, whose step takes --device_ms and leaves the processor free, without
    and with `Prefetch`;
  - the share that a training step of the factorized encoder on this processor waits, with `Prefetch`;
  - the memory: private (bounded by the batches) and mapped (the page cache's, given back when needed).
Everything written is removed at the end.
"""

import argparse
import concurrent.futures
import importlib.metadata
import multiprocessing
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from neurorecon.encoders import DwiseNeuro, Factorized
from neurorecon.recordings import PreparedRecording, Trial, open_recording, prepare, write_sensorium
from neurorecon.recordings.tfds_builder import DatasetTrials, build_dataset, open_dataset
from neurorecon.training.batches import draw_batches
from neurorecon.training.prefetch import Prefetch
from neurorecon.training.settings import TrainingSettings
from neurorecon.training.step import state_of, train_step

FRAMES, HEIGHT, WIDTH = 300, 36, 64
BATCH, WINDOW, STEP = 32, 16, 2


def random_trials(num_trials: int, num_neurons: int) -> Iterator[Trial]:
    """Trials of noise; responses are cut from one long block, which is quicker to make."""
    block = np.random.default_rng(num_trials).gamma(0.5, 1.0, (FRAMES + 64, num_neurons)).astype(np.float32)
    for number in range(num_trials):
        rng = np.random.default_rng(number)
        yield Trial(
            id=str(number),
            animal="random",
            tier="train",
            stimulus=rng.integers(0, 256, (FRAMES, HEIGHT, WIDTH)).astype(np.float32),
            responses=block[number % 64 : number % 64 + FRAMES],
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


def compare_formats(arguments: argparse.Namespace, folder: Path) -> None:
    packages = ["numpy", "tensorflow-datasets", "array-record"]
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


# How long a device waits, at the real size.


def encoder_and_settings(name: str, neurons: int) -> tuple[Any, TrainingSettings]:
    """An encoder whose windows are drawn, and its batch size: the published one's, and the defaults of ours."""
    if name == "published":
        return DwiseNeuro(num_neurons=(neurons,), screen=(HEIGHT, WIDTH)), TrainingSettings(batch_size=32)
    fields: dict[str, Any] = {"window_frames": 44, "frame_step": 3, "warmup_frames": 8, "features": (32, 32)}
    fields |= {"spatial_kernels": (3, 3), "temporal_kernels": (6, 4), "strides": (3, 1), "readout_pool": 1}
    encoder = Factorized(num_neurons=(neurons,), canvas=(HEIGHT, WIDTH), **fields)
    return encoder, TrainingSettings(batch_size=6, optimiser="muon")


def write_tree(folder: Path, trials: int, neurons: int) -> None:
    write_sensorium(folder / "random", random_trials(trials, neurons))


def make_cache(folder: Path) -> None:
    prepare(open_recording(folder / "random"), folder / "prepared")


def check_cache(folder: Path) -> None:
    prepare(open_recording(folder / "random"), folder / "prepared").verify()


def drop_from_page_cache(folder: Path) -> None:
    """Only pages that no process maps can be dropped: call it while nothing has the files open."""
    for path in sorted((folder / "prepared").rglob("*.raw")):
        with open(path, "rb") as handle:
            os.fsync(handle.fileno())
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def drawing(folder: Path, name: str, neurons: int) -> tuple[Callable[[int], Any], Any, TrainingSettings]:
    encoder, settings = encoder_and_settings(name, neurons)
    recording = prepare(open_recording(folder / "random"), folder / "prepared")
    windows = [recording.windows("train", encoder.window_frames, encoder.frame_step)]

    def draw(step: int) -> Any:
        return draw_batches(encoder, [recording], windows, settings, num_models=1, seed=0, step=step)

    return draw, encoder, settings


def wait_of_device(folder: Path, name: str, neurons: int, batches: int, device: float) -> str:
    """Batches alone, then as many others behind the steps of a device that leaves the processor free."""
    draw, _, _ = drawing(folder, name, neurons)
    cpu = time.process_time()
    times = []
    for step in range(batches):
        begin = time.perf_counter()
        batch = draw(step)
        times.append(time.perf_counter() - begin)
    cpu = (time.process_time() - cpu) / batches
    size, each = sum(x.nbytes for x in batch[0]) / 2**20, statistics.mean(times)
    del batch
    with Prefetch(draw, range(batches, 2 * batches + 1)) as prefetch:
        next(prefetch)  # nothing to hide the first one behind
        prefetch.waited, begin = 0.0, time.perf_counter()
        for _ in prefetch:
            time.sleep(device)
        took = time.perf_counter() - begin
    return (
        f"a batch of {size:.0f} MiB takes {1e3 * each:.1f} ms (median {1e3 * statistics.median(times):.1f}, longest "
        f"{1e3 * max(times):.1f}, processor {1e3 * cpu:.1f}); a device with a step of {1e3 * device:.0f} ms waits "
        f"{each / (each + device):.1%}, with prefetching {prefetch.waited / took:.2%}; {memory()}"
    )


def wait_of_training(folder: Path, neurons: int, steps: int) -> str:
    draw, encoder, settings = drawing(folder, "factorized", neurons)
    inputs = np.zeros((1, encoder.window_frames, *encoder.canvas, 5), np.float32)
    variables = encoder.init({"params": jax.random.key(0), "dropout": jax.random.key(0)}, inputs)
    state = state_of(jax.tree.map(lambda x: x[None], variables), settings)
    weights = [np.ones(neurons, np.float32)]
    with Prefetch(lambda step: jax.device_put(draw(step)), range(steps + 1)) as prefetch:
        for step, batches in prefetch:
            state, loss = train_step(encoder, settings, False, state, batches, weights, jax.random.key(step))
            np.asarray(loss)
            if step == 0:  # compiled
                begin, prefetch.waited = time.perf_counter(), 0.0
        took = time.perf_counter() - begin
    return f"waits {prefetch.waited / took:.3%} of {took:.1f} s, {took / steps:.2f} s a step; {memory()}"


def memory() -> str:
    """Private and file-backed memory of this process now, and the most that it had of both."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {line.split(":")[0]: int(line.split()[1]) / 2**10 for line in lines if line.startswith(("Rss", "VmHWM"))}
    return f"memory private {found['RssAnon']:.0f}, mapped {found['RssFile']:.0f}, most {found['VmHWM']:.0f} MiB"


def alone(job: Callable[..., Any], *arguments: Any) -> Any:
    """Runs a job in a process of its own, which maps nothing yet."""
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(job, *arguments).result()


def timed(label: str, job: Callable[..., Any], *arguments: Any) -> None:
    """Prints what a job took, in a process of its own, and the most memory that any such process had so far."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    alone(job, *arguments)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    took = time.perf_counter() - begin
    print(f"{label}: {took:.1f} s, processor {cpu:.1f} s, at most {after.ru_maxrss / 2**10:.0f} MiB", flush=True)


def measure_waiting(arguments: argparse.Namespace, folder: Path) -> None:
    trials, neurons, device = arguments.trials, arguments.neurons, arguments.device_ms / 1e3
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python", end=" ")
    print(f"{platform.python_version()}; {trials} trials x {FRAMES} frames, {neurons} neurons", flush=True)
    timed("tree written", write_tree, folder, trials, neurons)
    timed("prepared", make_cache, folder)
    timed("every checksum verified", check_cache, folder)
    size = sum(p.stat().st_size for p in (folder / "prepared").rglob("*.raw")) / 2**30
    print(f"prepared arrays: {size:.2f} GiB")
    for name in ("published", "factorized"):
        for cache in ("warm", "cold"):
            if cache == "cold":
                drop_from_page_cache(folder)
            found = alone(wait_of_device, folder, name, neurons, arguments.batches, device)
            print(f"{name}, {cache}: {found}", flush=True)
    drop_from_page_cache(folder)
    found = alone(wait_of_training, folder, neurons, max(2, arguments.batches // 4))
    print(f"factorized, cold, training on this processor: {found}; load {os.getloadavg()[0]:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=None, help="60, with --waiting 700")
    parser.add_argument("--neurons", type=int, default=None, help="2000, with --waiting 8000")
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--folder", default=None, help="where to write (default: the system's temporary folder)")
    parser.add_argument("--waiting", action="store_true", help="how long a device waits, at the real size")
    parser.add_argument("--device_ms", type=float, default=300.0, help="step of the device that waits")
    arguments = parser.parse_args()
    arguments.trials = arguments.trials or (700 if arguments.waiting else 60)
    arguments.neurons = arguments.neurons or (8000 if arguments.waiting else 2000)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        (measure_waiting if arguments.waiting else compare_formats)(arguments, Path(name))


if __name__ == "__main__":
    main()
