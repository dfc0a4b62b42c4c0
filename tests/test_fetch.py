"""Registered files: found, checked, downloaded from a server on this machine, and told by ``i2i fetch``."""

import hashlib
import http.server
import json
import os
import threading

import pytest

from i2ilib import I2IError, IntegrityError, UnavailableError, cli, runtime

GOOD, BAD = b"weights" * 1000, b"nothing" * 1000  # of one size


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        body, length = self.server.files[self.path.lstrip("/")]
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    """``files`` by path: content and the length that is promised; ``asked`` tells what was."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked, server.files = [], {"w.bin": (GOOD, len(GOOD))}
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def entries(server, tmp_path, monkeypatch):
    """A registry of two files, one of PyTorch's; an empty cache of ours and of PyTorch's."""
    base = {"sha256": hashlib.sha256(GOOD).hexdigest(), "size": len(GOOD), "licence": "MIT", "about": "a test"}
    entries = {
        "w.bin": base | {"url": f"http://127.0.0.1:{server.server_port}/w.bin"},
        "torch.pth": base | {"url": "https://download.pytorch.org/models/torch.pth"},
    }
    monkeypatch.setattr(runtime, "registry", lambda: entries)
    monkeypatch.setattr(runtime, "CACHE", tmp_path / "cache")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("I2I_OFFLINE", raising=False)
    return entries


@pytest.fixture
def ours(entries, tmp_path):
    """A function that puts a file into our cache, or names its place."""
    return lambda name, content=None: put(tmp_path / "cache/downloads" / name, content)


@pytest.fixture
def torchs(entries, tmp_path):
    return lambda name, content=None: put(tmp_path / "torch/hub/checkpoints" / name, content)


def put(path, content):
    if content is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return path


@pytest.fixture
def call(capsys):
    def run(*argv):
        code = cli.main(["fetch", *argv])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


# --- from Python ---------------------------------------------------------------------------------------


def test_a_file_is_downloaded_once(server, ours):
    assert runtime.fetch("w.bin") == runtime.fetch("w.bin") == runtime.fetched("w.bin") == ours("w.bin")
    assert ours("w.bin").read_bytes() == GOOD and server.asked == ["/w.bin"]
    assert os.listdir(ours("w.bin").parent) == ["w.bin"]


@pytest.mark.parametrize(
    ("sent", "error"), [((BAD, len(BAD)), IntegrityError), ((GOOD[:99], len(GOOD)), UnavailableError)]
)
def test_nothing_is_kept_of_a_download_that_went_wrong(server, ours, sent, error):
    server.files["w.bin"] = sent
    with pytest.raises(error, match=r"w\.bin"):
        runtime.fetch("w.bin")
    assert not ours("w.bin").parent.exists() or not os.listdir(ours("w.bin").parent)


def test_nothing_is_downloaded_unasked(server, entries, monkeypatch):
    with pytest.raises(UnavailableError, match=r"Run i2i fetch w\.bin online"):
        runtime.fetched("w.bin")
    monkeypatch.setenv("I2I_OFFLINE", "1")
    with pytest.raises(UnavailableError, match="I2I_OFFLINE is set") as error:
        runtime.fetch("w.bin")
    for part in (entries["w.bin"]["url"], entries["w.bin"]["sha256"], "downloads", "i2i fetch w.bin"):
        assert part in str(error.value)
    assert server.asked == []


@pytest.mark.parametrize("get", [runtime.fetch, runtime.fetched])
def test_a_damaged_file_is_refused_with_what_mends_it(server, entries, ours, get):
    path = ours("w.bin", BAD)
    with pytest.raises(IntegrityError, match=r"i2i fetch w\.bin") as error:
        get("w.bin")
    for part in (entries["w.bin"]["url"], entries["w.bin"]["sha256"], str(path)):
        assert part in str(error.value)
    assert path.read_bytes() == BAD and server.asked == []


def test_a_damaged_file_is_replaced_on_request(server, ours, monkeypatch):
    path = ours("w.bin", BAD)
    monkeypatch.setenv("I2I_OFFLINE", "1")
    with pytest.raises(IntegrityError):
        runtime.fetch("w.bin", mend=True)
    monkeypatch.delenv("I2I_OFFLINE")
    assert runtime.fetch("w.bin", mend=True).read_bytes() == GOOD and path.read_bytes() == GOOD
    runtime.fetch("w.bin", mend=True)
    assert server.asked == ["/w.bin"]


def test_an_unknown_name(entries):
    for get in (runtime.fetch, runtime.fetched):
        with pytest.raises(I2IError, match=r"one of w\.bin, torch\.pth, got 'v\.bin'"):
            get("v.bin")


def test_a_file_is_read_once_while_it_stays_as_it_is(ours, monkeypatch):
    path, read, real = ours("w.bin", GOOD), [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, kind: (read.append(file.name), real(file, kind))[1])
    for _ in range(3):
        runtime.fetched("w.bin")
    assert read == [str(path)]
    path.write_bytes(BAD)
    os.utime(path, ns=(0, 1))
    with pytest.raises(IntegrityError):
        runtime.fetched("w.bin")
    with pytest.raises(IntegrityError):
        runtime.fetched("w.bin")
    assert len(read) == 2


def test_pytorchs_cache_is_used_in_place(ours, torchs):
    path = torchs("torch.pth", GOOD)
    assert runtime.fetched("torch.pth") == runtime.fetch("torch.pth") == path
    assert runtime.fetched("torch.pth") == path and not ours("torch.pth").exists()
    assert runtime.fetch("torch.pth", folder=ours("x").parent) == path


def test_a_wrong_file_in_pytorchs_cache_is_refused(ours, torchs):
    path = torchs("torch.pth", BAD)
    for get in (runtime.fetch, runtime.fetched):
        with pytest.raises(IntegrityError, match=r"i2i fetch torch\.pth") as error:
            get("torch.pth")
        assert str(path) in str(error.value)
    assert runtime.fetched("torch.pth", folder=ours("torch.pth", GOOD).parent) == ours("torch.pth")  # ours is first


def test_pytorchs_cache_is_asked_for_files_of_pytorch_alone(server, ours, torchs):
    torchs("w.bin", BAD)  # somebody else's file of that name
    assert runtime.fetch("w.bin") == ours("w.bin") and server.asked == ["/w.bin"]


def test_places_in_the_project_are_told_from_there():
    inside = runtime.ROOT / "data" / "x"
    with pytest.raises(UnavailableError) as error:
        runtime.fetched("squeezenet1_1-b8a52dc0.pth", folder=inside)
    assert f"at {inside.relative_to(runtime.ROOT)}" in str(error.value) and str(runtime.ROOT) not in str(error.value)


# --- from the command line -------------------------------------------------------------------------------


def test_files_are_listed(call, ours, server):
    ours("w.bin", BAD)
    code, out, err = call()
    assert code == 0 and err == "" and server.asked == []
    assert [line.split()[:3] for line in out.splitlines()] == [
        ["damaged", "w.bin", "7,000"],
        ["absent", "torch.pth", "7,000"],
    ]
    told = json.loads(call("--json")[1])["files"]
    assert told["w.bin"]["state"] == "damaged" and told["torch.pth"]["licence"] == "MIT"
    assert told["torch.pth"]["path"] is None


def test_files_are_fetched_by_name(call, ours, server):
    ours("w.bin", BAD)
    code, out, _ = call("w.bin", "--json")
    told = json.loads(out)["files"]
    assert code == 0 and list(told) == ["w.bin"] and server.asked == ["/w.bin"]
    assert told["w.bin"]["state"] == "here" and told["w.bin"]["path"] == str(ours("w.bin"))
    assert ours("w.bin").read_bytes() == GOOD


def test_all_files_are_fetched(call, ours, torchs, server):
    torchs("torch.pth", GOOD)
    code, out, _ = call("--all")
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == ["here", "here"]
    assert ours("w.bin").read_bytes() == GOOD


@pytest.mark.parametrize(("name", "words"), [("w.bin", "I2I_OFFLINE is set"), ("v.bin", "one of w.bin, torch.pth")])
def test_what_cannot_be_fetched_is_told_in_one_line(call, entries, monkeypatch, name, words):
    monkeypatch.setenv("I2I_OFFLINE", "1")
    code, out, err = call(name)
    assert code == 2 and out == "" and err.startswith("i2i: ") and err.count("\n") == 1 and words in err
