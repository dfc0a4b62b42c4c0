"""The ground floor: presets, optional libraries, safe writes, downloads, recorded results."""

import hashlib
import itertools
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from i2ilib import I2IError, IntegrityError, UnavailableError, available, runtime, start


def test_import_is_light_and_silent():
    code = "import sys, i2ilib; print([m for m in ('torch', 'openvino', 'matplotlib', 'skimage') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]" and done.stderr == ""


@pytest.mark.parametrize("preset", ["smoke", "quick", "full"])
def test_preset_picks_sizes(monkeypatch, preset):
    monkeypatch.setenv("I2I_PRESET", preset)
    sizes = {"smoke": 1, "quick": 2, "full": 3}
    assert start().pick(**sizes) == sizes[preset]


def test_quick_when_unset_and_an_unknown_preset_is_refused(monkeypatch):
    monkeypatch.delenv("I2I_PRESET", raising=False)
    assert start().preset == "quick"
    with pytest.raises(I2IError, match="smoke or quick or full"):
        start(preset="huge")


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_numpy_cannot_take_is_refused(seed):
    with pytest.raises(I2IError, match=f"seed.*0 to 4294967295.*{seed}"):
        start(seed)


def test_start_seeds_all_three():
    import random

    import numpy as np
    import torch

    def draw():
        start(7)
        return random.random(), np.random.rand(), torch.rand(1).item()

    assert draw() == draw()


def test_threads_from_the_environment(monkeypatch):
    import torch

    before = torch.get_num_threads()
    monkeypatch.setenv("I2I_THREADS", "1")
    try:
        assert start().threads == 1
        monkeypatch.setenv("I2I_THREADS", "many")
        with pytest.raises(I2IError, match="I2I_THREADS"):
            start()
    finally:
        torch.set_num_threads(before)


def test_provenance_is_json():
    about = start(3).describe()
    assert about["seed"] == 3 and "torch" in about["versions"]
    json.dumps(about)


def test_available_gives_a_reason_either_way():
    assert available("numpy") and "numpy" in available("numpy").reason
    for name in ("vart", "pytorch_nndct"):
        missing = available(name)
        if not missing:  # in AMD's container they are there
            assert "container" in missing.reason
    assert available("cuda").reason


def test_a_module_of_the_same_name_is_not_amds(monkeypatch):
    import types

    monkeypatch.setitem(sys.modules, "xir", types.ModuleType("xir"))
    assert not available("xir") and "not AMD's" in available("xir").reason


def test_a_library_built_for_another_torch_is_unavailable(monkeypatch):
    def broken(name):
        raise OSError("undefined symbol: _ZN2at4_ops")

    monkeypatch.setattr(runtime.importlib, "import_module", broken)
    assert "undefined symbol" in available("pytorch_nndct").reason
    with pytest.raises(ImportError):
        runtime.require("tensorrt")


def test_torchvision_imports_beside_a_cpu_torch():
    assert available("torchvision")


@pytest.mark.parametrize(("system", "usual"), [("linux", "g++"), ("darwin", "clang++"), ("win32", "cl")])
def test_the_compiler_is_the_one_that_torch_would_call(monkeypatch, system, usual):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(runtime.sys, "platform", system)
    monkeypatch.setattr(runtime.shutil, "which", lambda name: f"/usr/bin/{name}" if name == usual else None)
    assert available("compiler") == (True, usual)
    monkeypatch.setenv("CXX", "icpx")
    assert not available("compiler") and "named by CXX" in available("compiler").reason


def test_a_command_is_split_as_its_system_spells_paths(monkeypatch):
    assert runtime.split_command(r"a\ b 'c d' #e") == ["a b", "c d", "#e"] and runtime.split_command("") == []
    with pytest.raises(ValueError, match="No closing quotation"):
        runtime.split_command("'c d")
    monkeypatch.setattr(runtime.sys, "platform", "win32")
    assert runtime.split_command(r'"C:\Program Files\py.exe" -u C:\a') == [r"C:\Program Files\py.exe", "-u", r"C:\a"]


def test_windows_does_not_tell_the_peak_of_memory(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    assert runtime.peak_memory_gib() is None


# --- safe writes -------------------------------------------------------------------------------------


@pytest.fixture
def umask():
    """A function that sets the umask, for this test."""
    if os.name == "nt":
        pytest.skip("Windows has no umask: files inherit their permissions from the folder")
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def permissions(path):
    return path.stat().st_mode & 0o777


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path):
    path = tmp_path / "a.json"
    runtime.write_json(path, {"x": 1})
    with pytest.raises(RuntimeError), runtime.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_file_gets_the_permissions_of_any_new_file(tmp_path, umask):
    for mask in (0o022, 0o077, 0o002, 0o000):
        umask(mask)
        path = tmp_path / f"{mask:o}.json"
        runtime.write_json(path, {})
        assert permissions(path) == 0o666 & ~mask
        runtime.write_json(path, {"again": 1})
        assert permissions(path) == 0o666 & ~mask


def test_writing_in_many_threads_leaves_the_umask_alone(tmp_path, umask, monkeypatch):
    """To ask for the umask is to set it: for a moment every file of the process would be anybody's to write."""

    def slowly(mask):
        before = umask(mask)
        time.sleep(0.001)  # the moment, made long enough to be met
        return before

    def write(thread):
        for i in range(20):
            runtime.write_json(tmp_path / f"{thread}-{i}.json", {})
            (tmp_path / f"{thread}-{i}.plain").touch()

    monkeypatch.setattr(os, "umask", slowly)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert {permissions(path) for path in tmp_path.iterdir()} == {0o644} and len(list(tmp_path.iterdir())) == 320
    assert umask(0o022) == 0o022


def test_a_temporary_name_that_is_taken_is_left_alone(tmp_path, monkeypatch):
    names = itertools.chain(["taken", "taken", "free"])
    monkeypatch.setattr(runtime.secrets, "token_hex", lambda size: next(names))
    other = tmp_path / ".a-taken.part.json"
    other.write_text("another process's")
    with runtime.atomic_path(tmp_path / "a.json") as temporary:
        assert temporary.name == ".a-free.part.json"
        temporary.write_text("{}")
    assert other.read_text() == "another process's"
    assert sorted(p.name for p in tmp_path.iterdir()) == [".a-taken.part.json", "a.json"]


NAMES = ["m", "M", "m-large", "m-1", "m-0123abcd", "m.v1", "m.part", "m-0123abcd.part", "a[1]", "a1", "a*", "*", ".m"]


@pytest.mark.parametrize("suffix", [".safetensors", ".json", ""])
def test_only_what_is_left_of_a_file_itself_is_discarded(tmp_path, monkeypatch, suffix):
    def killed(path):
        """What a process leaves that is killed while it writes."""
        with monkeypatch.context() as patched:
            patched.setattr(Path, "unlink", lambda *_, **__: None)
            with pytest.raises(KeyboardInterrupt), runtime.atomic_path(path) as temporary:
                raise KeyboardInterrupt
        return temporary

    paths = [tmp_path / f"{name}{suffix}" for name in NAMES]
    left = [killed(path) for path in paths] + [killed(path) for path in paths]
    kept = [
        tmp_path / name for name in (".m-backup", ".m-20260131", ".m-0123abcd", "m-0123abcd.part", ".m-0123ABCD.part")
    ]  # fmt: skip
    kept = [path.with_name(path.name + suffix) for path in kept] + paths
    for path in kept:
        path.touch()
    folder = tmp_path / f".m-76543210.part{suffix}"
    folder.mkdir()
    for number, path in enumerate(paths, start=1):
        runtime.discard_parts(path)
        gone = {one for one in left if not one.exists()}
        assert gone == {one for k in range(number) for one in (left[k], left[k + len(paths)])}
    assert all(path.exists() for path in kept) and folder.is_dir()


def test_nothing_is_left_of_a_file_in_no_folder(tmp_path):
    runtime.discard_parts(tmp_path / "none" / "a.json")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path, monkeypatch):
    def denied(*_):
        raise PermissionError("denied")

    monkeypatch.setattr(runtime.os, "open", denied)  # root may write everywhere
    with pytest.raises(PermissionError), runtime.atomic_path(tmp_path / "a.json"):
        pytest.fail("there is nothing to write to")
    assert not list(tmp_path.iterdir())


def test_what_was_read_is_no_longer_bound_to_its_file(tmp_path):
    """On Windows a file that is mapped into memory cannot be replaced, so a checkpoint could not be saved again."""
    import torch

    path = tmp_path / "a.safetensors"
    runtime.write_tensors(path, {"x": torch.arange(10_000)}, {})
    tensors, _ = runtime.read_tensors(path, "tensors")
    with open(path, "rb+") as file:
        file.write(bytes(path.stat().st_size))
    assert torch.equal(tensors["x"], torch.arange(10_000))


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A registry with one file; no test here reaches the network."""
    content = b"weights"
    entry = {"url": "https://example.org/w.bin", "sha256": hashlib.sha256(content).hexdigest()}
    monkeypatch.setattr(runtime, "registry", lambda: {"w.bin": entry})
    return tmp_path, content, entry


def test_registry_is_complete():
    for name, entry in runtime.registry().items():
        assert entry["url"].startswith("https://") and len(entry["sha256"]) == 64, name
        assert entry["size"] > 0 and entry["licence"] and entry["about"]


def test_fetch_uses_a_good_file_and_refuses_a_bad_one(source):
    folder, content, _ = source
    (folder / "w.bin").write_bytes(content)
    assert runtime.fetch("w.bin", folder=folder).read_bytes() == content
    (folder / "w.bin").write_bytes(b"interrupted")
    with pytest.raises(IntegrityError, match=r"w\.bin"):
        runtime.fetch("w.bin", folder=folder)
    with pytest.raises(I2IError, match=r"one of w\.bin"):
        runtime.fetch("other", folder=folder)


def test_fetch_offline_says_where_to_put_the_file(source, monkeypatch):
    folder, _, entry = source
    monkeypatch.setenv("I2I_OFFLINE", "1")
    with pytest.raises(UnavailableError) as error:
        runtime.fetch("w.bin", folder=folder)
    assert entry["url"] in str(error.value) and entry["sha256"] in str(error.value)
    assert str(folder / "w.bin") in str(error.value)


@pytest.mark.parametrize(
    ("raised", "expected"), [(ConnectionError("no route"), UnavailableError), (ValueError("hash"), IntegrityError)]
)
def test_fetch_reports_a_failed_download(source, monkeypatch, raised, expected):
    import pooch

    def fail(*_, **__):
        raise raised

    monkeypatch.delenv("I2I_OFFLINE", raising=False)
    monkeypatch.setattr(pooch, "retrieve", fail)
    with pytest.raises(expected, match=r"w\.bin"):
        runtime.fetch("w.bin", folder=source[0])


def test_fetch_downloads_and_checks(source, monkeypatch):
    import pooch

    folder, content, entry = source

    def retrieve(url, known_hash, fname, path, progressbar):
        assert (url, known_hash) == (entry["url"], entry["sha256"])
        (path / fname).write_bytes(content)

    monkeypatch.delenv("I2I_OFFLINE", raising=False)
    monkeypatch.setattr(pooch, "retrieve", retrieve)
    assert runtime.fetch("w.bin", folder=folder).read_bytes() == content


def test_a_smaller_run_does_not_overwrite_a_recorded_one(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "RESULTS", tmp_path)
    runtime.record("table", start(preset="full"), {"iou": 0.99})
    with pytest.raises(I2IError, match="at least as large as full"):
        runtime.record("table", start(preset="smoke"), {"iou": 0.1})
    found = runtime.recorded("table")
    assert found["result"] == {"iou": 0.99} and found["provenance"]["preset"] == "full"
    with pytest.raises(I2IError, match="table"):
        runtime.recorded("missing")
