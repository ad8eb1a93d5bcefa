"""Published weights in and out, and what must not get in."""

import pickle
import pickletools
import resource
import struct
import time
import zipfile

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from benchmarks.fuzz_checkpoints import fuzz, small_checkpoint
from neurorecon.encoders.dwiseneuro import DwiseNeuro
from neurorecon.encoders.position import inverse_frequencies
from neurorecon.encoders.published import export_published, load_published, params_of
from neurorecon.encoders.published_layout import published_layout
from neurorecon.encoders.published_pickle import _NAMES, read_checkpoint
from neurorecon.encoders.published_writer import write_checkpoint
from neurorecon.errors import NeuroreconError
from tests.shared_data import SHARED, needs_shared


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / "small.pth"
    small_checkpoint(path, 0)
    return path


def equal(one, two) -> bool:
    same = jax.tree.map(lambda a, b: a.dtype == b.dtype and np.array_equal(a, b), one, two)
    return jax.tree.all(same)


def refused(function, *arguments) -> str:
    """The one line that `function` refuses with."""
    with pytest.raises(NeuroreconError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    return str(caught.value)


def write_zip(path, data: bytes, compression=zipfile.ZIP_STORED, **members: bytes):
    """A checkpoint's zip around a pickle; members named s0, s1, ... are the storages."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("root/data.pkl", data)
        for name, content in members.items():
            archive.writestr(f"root/data/{name[1:]}" if name[0] == "s" else f"root/{name}", content)
    return path


def tensor(key, storage, count, offset, shape, strides) -> bytes:
    """Opcodes of one tensor, written here anew."""

    def text(value):
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def numbers(values):
        return b"(" + b"".join(b"J" + struct.pack("<i", v) for v in values) + b"t"

    identity = b"(" + text("storage") + f"ctorch\n{storage}\n".encode() + text(key) + text("cpu")
    identity += b"J" + struct.pack("<i", count) + b"tQ"
    rest = b"J" + struct.pack("<i", offset) + numbers(shape) + numbers(strides)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + identity + rest + b"\x89ccollections\nOrderedDict\n)RtR"


def listed(*items: bytes) -> bytes:
    return b"\x80\x02](" + b"".join(items) + b"e."


@needs_shared("reference/dwiseneuro_tiny.pth")
def test_import_and_export_are_exact(tmp_path):
    path = SHARED / "reference/dwiseneuro_tiny.pth"
    encoder, variables = load_published(path)
    assert encoder == DwiseNeuro(
        num_neurons=(13, 10),
        core_features=(8, 8, 16, 24),
        spatial_strides=(2, 1, 2, 1),
        expansion_ratio=3,
        se_reduce_ratio=4,
        cortex_features=(32, 64),
    )
    export_published(encoder, variables, tmp_path / "out.npz")
    state = read_checkpoint(path)["nn_state_dict"]
    with np.load(tmp_path / "out.npz") as exported:
        assert exported.files == list(state)
        for name, array in state.items():
            assert exported[name].dtype == array.dtype and exported[name].shape == array.shape
            assert exported[name].tobytes() == array.tobytes(), name


def test_round_trip_through_pth(small, tmp_path):
    encoder, variables = load_published(small)
    # Counts and frequencies as a long training leaves them: nothing is recomputed on the way.
    variables["batch_stats"]["stem"]["norm"]["count"] = jnp.asarray(12345, jnp.int32)
    frequencies = variables["batch_stats"]["block0"]["position"]
    frequencies["inv_freq"] = frequencies["inv_freq"] * (1 + 3e-5)
    export_published(encoder, variables, tmp_path / "again.pth")
    found, found_variables = load_published(tmp_path / "again.pth")
    assert found == encoder and equal(found_variables, variables)


def test_variables_have_the_shapes_that_the_encoder_initialises(small):
    encoder, variables = load_published(small)
    inputs = jax.ShapeDtypeStruct((1, 4, 8, 8, 5), jnp.float32)
    expected = jax.eval_shape(encoder.init, jax.random.key(0), inputs)
    shapes = jax.tree.map(lambda a: (a.shape, a.dtype), variables)
    assert shapes == jax.tree.map(lambda a: (a.shape, a.dtype), expected)


def test_dtypes_strides_and_shared_storages(tmp_path):
    values = np.arange(12, dtype=np.float32)
    half = np.arange(4, dtype=np.float16)
    brain = np.arange(4).astype(ml_dtypes.bfloat16)
    path = write_zip(
        tmp_path / "t.pth",
        listed(
            tensor("0", "FloatStorage", 12, 0, (3, 4), (4, 1)),
            tensor("0", "FloatStorage", 12, 0, (4, 3), (1, 4)),  # the transpose, sharing the storage
            tensor("0", "FloatStorage", 12, 5, (2, 2), (4, 2)),
            tensor("0", "FloatStorage", 12, 3, (5,), (0,)),  # one number repeated
            tensor("1", "HalfStorage", 4, 0, (4,), (1,)),
            tensor("2", "BFloat16Storage", 4, 0, (4,), (1,)),
            tensor("3", "LongStorage", 1, 0, (), ()),
            tensor("4", "DoubleStorage", 2, 0, (2,), (1,)),
            tensor("4", "DoubleStorage", 2, 0, (2, 0), (1, 1)),
        ),
        s0=values.tobytes(),
        s1=half.tobytes(),
        s2=brain.tobytes(),
        s3=np.int64(2**40).tobytes(),
        s4=np.array([1e300, -1e-300]).tobytes(),
    )
    found = read_checkpoint(path)
    expected = [
        values.reshape(3, 4), values.reshape(3, 4).T, values[[5, 7, 9, 11]].reshape(2, 2),
        np.full(5, 3, np.float32), half, brain, np.array(2**40), np.array([1e300, -1e-300]), np.zeros((2, 0)),
    ]  # fmt: skip
    for ours, theirs in zip(found, expected):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)


def test_big_endian_files(tmp_path):
    values = np.array([1.5, -2.25], np.float32)
    pickled = listed(tensor("0", "FloatStorage", 2, 0, (2,), (1,)))
    path = write_zip(tmp_path / "b.pth", pickled, byteorder=b"big", s0=values.astype(">f4").tobytes())
    np.testing.assert_array_equal(read_checkpoint(path)[0], values)
    path = write_zip(tmp_path / "c.pth", pickled, byteorder=b"odd", s0=values.tobytes())
    assert "byte order" in refused(read_checkpoint, path)


def test_zip64(small, tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 50)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 3)
    path = tmp_path / "z.pth"
    with zipfile.ZipFile(small) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert b"PK\x06\x06" in path.read_bytes()
    assert equal(load_published(path)[1], load_published(small)[1])


def test_ordered_dicts_with_attributes(tmp_path):
    attributes = b"}X\x09\x00\x00\x00_metadata}sb"
    pickled = b"\x80\x02ccollections\nOrderedDict\n)R(X\x01\x00\x00\x00aK\x05u" + attributes + b"."
    assert read_checkpoint(write_zip(tmp_path / "o.pth", pickled)) == {"a": 5}


def test_half_precision_weights_become_float32(small, tmp_path):
    checkpoint = read_checkpoint(small)
    expected = {}
    for name, array in checkpoint["nn_state_dict"].items():
        if array.dtype == np.float32 and "inv_freq" not in name:
            expected[name] = array.astype(np.float16).astype(np.float32)
            checkpoint["nn_state_dict"][name] = array.astype(np.float16)
    write_checkpoint(tmp_path / "h.pth", checkpoint)
    encoder, variables = load_published(tmp_path / "h.pth")
    export_published(encoder, variables, tmp_path / "h.npz")
    with np.load(tmp_path / "h.npz") as exported:
        assert expected and all(np.array_equal(exported[name], array) for name, array in expected.items())
        assert all(exported[name].dtype == np.float32 for name in expected)


class Evil:
    def __reduce__(self):
        return print, ("this must never be printed",)


@pytest.mark.parametrize(
    ("pickled", "named"),
    [
        (pickle.dumps({"params": Evil()}, 2), "__builtin__.print"),
        (b"\x80\x02cos\nsystem\n.", "os.system"),
        (b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00id\x85R.", "os.system"),
        (b"\x80\x02ctorch\nload\n.", "torch.load"),
        (b"\x80\x02}\x93.", "0x93"),
        (b"\x80\x02(S'id'\nios\nsystem\n.", "0x53"),
        (b"\x80\x02}P1\n.", "0x50"),
        (pickle.dumps({"a": 1}, 4), "protocol 2 or 3"),
        (pickle.dumps({"a": 1}, 0), "protocol"),
        (b"\x80\x02ccollections\nOrderedDict\n}R.", "no function"),
        (b"\x80\x02ccollections\nOrderedDict\n](NeR.", "no function"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.", "unexpected arguments"),
        (b"\x80\x02X\x07\x00\x00\x00storageQ.", "persistent id"),
        (listed(b"(" + tensor("0", "FloatStorage", 4, 0, (4,), (1,)) + b"}}}}tQ"), "persistent id"),
        (b"\x80\x02}" + b")" + b"\x86" * 3 + b".", "stack"),
        (b"\x80\x02h\x05.", "never kept"),
        (b"\x80\x02\x8a\xff" + b"\xff" * 255 + b".", "255 bytes"),
        (b"\x80\x02X\xff\xff\xff\xffabc.", "truncated"),
        (b"\x80\x02}))s.", "key of type tuple"),
        (b"\x80\x02}", "truncated"),
    ],
)
def test_everything_else_is_refused_by_name(tmp_path, capsys, pickled, named):
    assert named in refused(read_checkpoint, write_zip(tmp_path / "e.pth", pickled, s0=bytes(16)))
    assert "never be printed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("0", "FloatStorage", 4, 0, (5,), (1,)), "reaches element 4"),
        (("0", "FloatStorage", 4, 2, (2, 2), (2, 1)), "reaches element 5"),
        (("0", "FloatStorage", 4, -1, (2,), (1,)), "not whole numbers"),
        (("0", "FloatStorage", 4, 0, (2,), (-1,)), "not whole numbers"),
        (("0", "FloatStorage", 4, 0, (2, 2), (1,)), "fit together"),
        (("0", "FloatStorage", 5, 0, (2,), (1,)), "5 float32 declared"),
        (("0", "DoubleStorage", 4, 0, (2,), (1,)), "4 float64 declared"),
        (("9", "FloatStorage", 4, 0, (2,), (1,)), "data/9"),
        (("0", "FloatStorage", 4, 0, (2**30, 2**30), (0, 0)), "claim far more"),
    ],
)
def test_tensors_outside_their_storage(tmp_path, arguments, named):
    path = write_zip(tmp_path / "s.pth", listed(tensor(*arguments)), s0=np.zeros(4, np.float32).tobytes())
    assert named in refused(read_checkpoint, path)


def test_bombs_cost_neither_memory_nor_time(tmp_path):
    bombs = {
        "nested": b"\x80\x02)" + b"\x85" * 900_000 + b".",
        "doubling": b"\x80\x02)q\x00" + b"h\x00h\x00\x86q\x00" * 100_000 + b".",
        "endless": b"\x80\x02]q\x00h\x00a.",
        "long": b"\x80\x02" + b"}" * 50_000_000 + b".",
        "memo": b"\x80\x02}r\xff\xff\xff\xff.",
        "huge params": b"\x80\x02}(X\x06\x00\x00\x00params}X\x0d\x00\x00\x00nn_state_dict}u.",
    }
    for name, pickled in bombs.items():
        path = write_zip(tmp_path / "bomb.pth", pickled)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.monotonic()
        assert str(path) in refused(load_published, path), name
        assert time.monotonic() - started < 10, name
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000, name  # kB
    path = write_zip(tmp_path / "zip.pth", b"\x80\x02" + b"}" * 10_000_000 + b".", zipfile.ZIP_DEFLATED)
    assert "compressed" in refused(load_published, path)


def test_zip_that_claims_more_than_it_has(small, tmp_path):
    content = bytearray(small.read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 20 : entry + 28] = struct.pack("<LL", 2**31, 2**31)
    (tmp_path / "c.pth").write_bytes(content)
    assert "claim" in refused(load_published, tmp_path / "c.pth")


def test_damaged_files(small, tmp_path):
    content = small.read_bytes()
    path = tmp_path / "d.pth"
    for size in (0, 3, 21, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        refused(load_published, path)
    middle = content.index(b"data/3") + 20
    path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    assert "checksum" in refused(load_published, path)
    path.write_bytes(pickle.dumps({"a": 1}, 2) + b" " * 30)
    assert "before 1.6" in refused(load_published, path)
    assert "No such file" in refused(load_published, tmp_path / "absent.pth")
    assert "directory" in refused(load_published, tmp_path)


def changed(small, tmp_path, change):
    checkpoint = read_checkpoint(small)
    checkpoint = change(checkpoint) or checkpoint
    write_checkpoint(tmp_path / "p.pth", checkpoint)
    return refused(load_published, tmp_path / "p.pth")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda c: c.pop("params") and None, "'params'"),
        (lambda c: c.pop("nn_state_dict") and None, "'nn_state_dict'"),
        (lambda c: [1, 2], "'params'"),
        (lambda c: c["params"].pop("nn_module") and None, "params.nn_module"),
        (lambda c: c["params"].update(nn_module=("other", {})), "expected 'dwiseneuro'"),
        (lambda c: c["params"]["nn_module"][1].pop("groups") and None, "'groups'"),
        (lambda c: c["params"]["nn_module"][1].update(width=3), "unknown setting 'width'"),
        (lambda c: c["params"]["nn_module"][1].update(groups=2.0), "nn_module.groups: expected a whole"),
        (lambda c: c["params"]["nn_module"][1].update(core_features=(4, 4)), "expected shape"),
        (lambda c: c["params"]["nn_module"][1].update(core_features=(4,)), "one stride"),
        (lambda c: c["params"]["nn_module"][1].update(core_features=(2**31 - 2, 2)), "expected shape"),
        (lambda c: c["params"]["nn_module"][1].update(readout_outputs=(3, 3)), "lacks"),
        (lambda c: c["params"]["nn_module"][1].update(softplus_beta=float("nan")), "softplus_beta"),
        (lambda c: c["params"]["frame_stack"].update(position="first"), "frame_stack"),
        (lambda c: c["params"]["frame_stack"].update(size=0), "frame_stack.size"),
        (lambda c: c["params"].pop("inputs_processor") and None, "inputs_processor"),
        (lambda c: c["params"].update(nn_module=(np.zeros(3), {})), "params.nn_module"),
        (lambda c: c["params"].update(responses_processor=("log", {})), "identity"),
        (lambda c: c["params"]["inputs_processor"][1].update(size=(1, 2, 3)), "size"),
        (lambda c: c["nn_state_dict"].pop("core.stem.0.weight") is None, "lacks 'core.stem.0.weight'"),
        (lambda c: c["nn_state_dict"].update(extra=np.zeros(2, np.float32)), "unknown 'extra'"),
        (lambda c: c["nn_state_dict"].update({"core.stem.1.bn.bias": np.zeros(4, np.int64)}), "floating"),
        (lambda c: c["nn_state_dict"].update({"core.stem.1.bn.bias": np.full(4, np.nan)}), "NaN"),
        (lambda c: c["nn_state_dict"].update({"core.stem.1.bn.running_var": np.full(4, -1.0)}), "variances"),
        (lambda c: c["nn_state_dict"].update({"core.blocks.0.inv_freq": np.full(1, 2.0)}), "10000"),
    ],
)
def test_params_and_weights_that_contradict_each_other(small, tmp_path, change, named):
    assert named in changed(small, tmp_path, lambda c: None if change(c) in (None, True, False) else [1, 2])


def test_random_damage_is_refused_and_runs_nothing(small):
    outcomes, failures = fuzz(small.read_bytes(), 300, seed=1)
    assert failures == []
    assert outcomes["refused"] > 200 and outcomes["refused"] + outcomes["loaded"] == 300


def test_opcodes_are_those_of_pickletools():
    known = {ord(op.code): op.name for op in pickletools.opcodes}
    assert all(known[code] == name for code, name in _NAMES.items())


@pytest.mark.slow
def test_an_encoder_of_the_published_size_imports_in_five_seconds(tmp_path):
    encoder = DwiseNeuro(num_neurons=(8000,))
    rng = np.random.default_rng(0)
    state, sizes = {}, 0
    for entry in published_layout(encoder):
        value = np.abs(rng.standard_normal(entry.shape, np.float32)) * 0.01
        state[entry.name] = np.zeros((), np.int64) if entry.path[-1] == "count" else value
        if entry.path[-1] == "inv_freq":
            features = encoder.core_features[int(entry.path[1].removeprefix("block"))]
            state[entry.name] = inverse_frequencies(features)
        sizes += value.size if entry.path[0] == "params" else 0
    assert sizes == 25_468_028
    write_checkpoint(tmp_path / "f.pth", {"params": params_of(encoder), "nn_state_dict": state})
    jnp.zeros(1).block_until_ready()
    started = time.monotonic()
    found, variables = load_published(tmp_path / "f.pth")
    jax.block_until_ready(variables)
    assert time.monotonic() - started < 5
    assert found == encoder


def test_export_refuses_what_it_cannot_write(small, tmp_path):
    encoder, variables = load_published(small)
    assert ".npz" in refused(export_published, encoder, variables, tmp_path / "a.bin")
    assert "unfolded" in refused(export_published, encoder.clone(folded=True), variables, tmp_path / "a.npz")
    assert "none" in refused(export_published, encoder, {"params": {}, "batch_stats": {}}, tmp_path / "a.npz")
    assert not list(tmp_path.iterdir())
