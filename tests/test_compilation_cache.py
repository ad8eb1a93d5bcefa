"""Code that one process has compiled, another takes from a folder. In processes of their own, since JAX remembers."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """
import json, sys
from collections import Counter
from pathlib import Path
import jax
from experiments import cli

counts = Counter()
jax.monitoring.register_event_listener(lambda event, **kwargs: counts.update([event.rsplit("/", 1)[-1]]))

def job(config, workdir):
    import numpy as np
    from neurorecon.reconstruction import published_recipe, reconstruct
    from tests.toy_encoders import toy, toy_clips
    responses, behaviour = (values[0] for values in toy_clips())
    options = {"recipe": published_recipe(), "key": jax.random.key(0), "num_steps": 3}
    found = reconstruct([toy("linear_nonlinear")], responses, behaviour, **options)
    np.save(Path(workdir) / sys.argv[0], found.movies)
    print(json.dumps(counts))

name = sys.argv.pop(1)
sys.argv[0] = name
cli.run(job, "test", config="experiments/configs/base.py")
"""


def run(folder: Path, name: str, *flags: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0", "JAX_PLATFORMS": "cpu"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, name, f"--workdir={folder}", *flags],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_a_second_process_compiles_nothing(tmp_path):
    cache = tmp_path / "made" / "here"
    counted = []
    for name in ("first.npy", "second.npy"):
        done = run(tmp_path, name, f"--config.compilation_cache={cache}")
        assert done.returncode == 0, done.stderr[-2000:]
        counted.append(json.loads(done.stdout.splitlines()[-1]))
    assert counted[0]["cache_misses"] > 5 and "cache_misses" not in counted[1]
    assert counted[1]["cache_hits"] == counted[0]["cache_misses"] + counted[0].get("cache_hits", 0)
    assert (tmp_path / "first.npy").read_bytes() == (tmp_path / "second.npy").read_bytes()


def test_nothing_is_kept_unasked_and_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    done = run(tmp_path, "refused.npy", f"--config.compilation_cache={tmp_path / 'file'}")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: --config.compilation_cache: expected a folder that can be written" in done.stderr
