"""Encoders' folders, and published weights turned into one."""

import subprocess
import sys

import jax
import pytest

from benchmarks.fuzz_checkpoints import small_checkpoint
from experiments.import_weights import import_weights
from neurorecon.encoders.checkpoints import load_encoder, register_encoder, save_encoder
from neurorecon.encoders.published import load_published
from neurorecon.errors import NeuroreconError
from tests.test_published import equal, refused


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / "small.pth"
    small_checkpoint(path, 0)
    return path


def test_encoder_folders(small, tmp_path):
    encoder, variables = load_published(small)
    folder = tmp_path / "encoders" / "0"
    save_encoder(folder, encoder, variables)
    found, found_variables = load_encoder(folder)
    assert found == encoder and equal(found_variables, variables)
    # Saved again, it is replaced; another encoder's class needs its name first.
    doubled = jax.tree.map(lambda a: a * 2, variables)
    save_encoder(folder, encoder.clone(drop_rate=0.1), doubled)
    found, found_variables = load_encoder(folder)
    assert found.drop_rate == 0.1 and equal(found_variables, doubled)
    assert sorted(p.name for p in folder.parent.iterdir()) == ["0"]
    with pytest.raises(NeuroreconError, match="already taken"):
        register_encoder("dwiseneuro", int)


def test_damaged_encoder_folders(small, tmp_path):
    encoder, variables = load_published(small)
    folder = tmp_path / "encoder"
    save_encoder(folder, encoder, variables)
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    assert len(files) > 3
    for path in files:
        content = path.read_bytes()
        for damage in (content[: len(content) // 2], b"\0" * len(content)):
            path.write_bytes(damage)
            try:
                _, found = load_encoder(folder)
            except NeuroreconError as error:
                assert "\n" not in str(error)
            else:
                assert equal(found, variables)  # a file that the numbers don't depend on
        path.write_bytes(content)
    assert equal(load_encoder(folder)[1], variables)
    (folder / "architecture.json").write_text('{"format": 1, "encoder": "other", "fields": {}}')
    assert "dwiseneuro" in refused(load_encoder, folder)
    assert "expected an encoder's folder" in refused(load_encoder, tmp_path / "absent")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    assert "other files" in refused(save_encoder, tmp_path / "mine", encoder, variables)


def test_import_weights(small, tmp_path, capsys):
    folders = import_weights([str(small)], str(tmp_path))
    assert folders == [tmp_path / "encoders" / "0"]
    assert equal(load_encoder(folders[0])[1], load_published(small)[1])
    import_weights([str(small)], str(tmp_path))  # again: already there
    small_checkpoint(tmp_path / "other.pth", 1)
    assert "another encoder" in refused(import_weights, [str(tmp_path / "other.pth")], str(tmp_path))


def test_import_weights_prints_one_line_for_a_damaged_file(small, tmp_path):
    (tmp_path / "t.pth").write_bytes(small.read_bytes()[:1000])
    command = [sys.executable, "-m", "experiments.import_weights", "--checkpoint", str(tmp_path / "t.pth")]
    done = subprocess.run([*command, "--workdir", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "truncated" in done.stderr and "Traceback" not in done.stderr
