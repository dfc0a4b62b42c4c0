"""A training that is killed at any moment goes on from its last whole checkpoint, to the bit where it would have ended.

Nothing is simulated: processes are killed by signals, and a real limit on file sizes stands for the full disk. Where
the moment matters, the process sends the signal to itself.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from i2ilib import cli
from i2ilib.train import gan

STEPS = 8  # two epochs of four
OPTIONS = ["--preset=smoke", "--epochs=2", "--patches=4", "--width=4", "--json", "--save-every"]
ENV = os.environ | {"OMP_NUM_THREADS": "1"}
INTERRUPTED = "i2i: interrupted; the same command goes on from here"

# Reads jobs, one JSON list [code, arguments, file for what is told] a line; runs each in a process of its own, forked
# from here so that PyTorch is imported once; answers with its exit status.
FORKS = """
import json, os, signal, sys
import i2ilib.plots, i2ilib.train, i2ilib.train.events
import matplotlib.pyplot, safetensors.torch, torch, torch._dynamo  # which the first optimiser imports
from i2ilib import cli

for line in sys.stdin:
    code, arguments, told = json.loads(line)
    pid = os.fork()
    if not pid:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        os.dup2(2, 1)
        exec(code)
        sys.stdin = None
        status = cli.main(arguments)
        sys.stdout.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""

# Faults: run in the process before the command.
IN_A_STEP = """
from i2ilib.train import MattingTask
step, half, at = MattingTask.step, MattingTask._train_judge, []

def noted(self, index, batch):
    at.append(index)
    return step(self, index, batch)

def struck(self, *tensors):
    loss = half(self, *tensors)  # the discriminator has moved, the generator has not
    if at[-1] == {index}:
        {fault}
    return loss

MattingTask.step, MattingTask._train_judge = noted, struck
"""
KILL = "os.kill(os.getpid(), signal.SIGKILL)"
IN_A_WRITE = """
from pathlib import Path
save_file, writes = safetensors.torch.save_file, []

def torn(tensors, path, metadata):
    if Path(path).name.startswith(".checkpoint-"):
        writes.append(path)
        if len(writes) == {nth}:
            whole = safetensors.torch.save(tensors, metadata)
            Path(path).write_bytes(whole[: int(len(whole) * {share})])
            os.kill(os.getpid(), signal.SIGKILL)
    save_file(tensors, path, metadata=metadata)

safetensors.torch.save_file = torn
"""
AFTER_AN_EPOCH = """
from i2ilib.train import MattingTask, checkpoint
finish, save, saves = MattingTask.finish_epoch, checkpoint.save, []

def finish_and_die(self, epoch):
    finish(self, epoch)  # its weights are there, the best ones are still those before
    os.kill(os.getpid(), signal.SIGKILL)

def die_before_the_second(*_, **more):
    saves.append(1)
    if len(saves) == 2:  # all files of the epoch are there, only the checkpoint knows nothing of it
        os.kill(os.getpid(), signal.SIGKILL)
    save(*_, **more)
"""
FULL_DISK = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, ({bytes}, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
"""


@pytest.fixture(scope="module")
def whole(clip, tmp_path_factory):
    """The undisturbed training, by the real command."""
    out = tmp_path_factory.mktemp("whole") / "m.safetensors"
    process = start(clip, out, save_every=3600)
    told, problem = process.communicate(timeout=120)
    assert process.returncode == 0, problem
    told = json.loads(told)
    units = gan.has_bf16("cuda" if torch.cuda.is_available() else "cpu")
    assert (told["steps"], told["precision"]) == (STEPS, "bf16" if units else "float32")
    return out


@pytest.fixture(scope="module")
def forks(clip, tmp_path_factory):
    """Run the command in a forked process with a fault; gives its exit status and the lines that it told."""
    told = tmp_path_factory.mktemp("forks") / "told.txt"
    server = subprocess.Popen(
        [sys.executable, "-c", FORKS], env=ENV, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )

    def run(out, fault="", *, save_every=0.0):
        job = [fault, ["train", str(clip), str(out), *OPTIONS, str(save_every)], str(told)]
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        return int(server.stdout.readline()), told.read_text().splitlines()

    yield run
    server.stdin.close()
    assert server.wait(timeout=60) == 0


@pytest.fixture
def out(tmp_path):
    return tmp_path / "m.safetensors"


def start(clip, out, *, save_every):
    command = [sys.executable, "-m", "i2ilib", "train", str(clip), str(out), *OPTIONS, str(save_every)]
    return subprocess.Popen(command, env=ENV, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def read(path):
    """Tensors and header of a file, less the times that a machine took and the checksum, which counts them in."""
    with safetensors.safe_open(path, framework="pt") as file:
        keys = set(file.keys()) - {"history/wait", "history/seconds"}
        header = {key: text for key, text in file.metadata().items() if key != "sha256"}
        return {key: file.get_tensor(key) for key in keys}, header


def steps_in(out):
    return len(read(out.with_suffix("") / "checkpoint.safetensors")[0]["history/l1"])


def hidden(out):
    """Temporary files, beside the weights and in their folder."""
    return [path.name for path in out.parent.rglob(".*")]


def assert_same_end(out, whole):
    """Every file of two trainings has the same tensors, bit by bit, and the same header; nothing else lies about."""
    names = sorted(path.relative_to(whole.parent) for path in whole.parent.rglob("*") if path.is_file())
    assert sorted(path.relative_to(out.parent) for path in out.parent.rglob("*") if path.is_file()) == names
    weights = [name for name in names if name.suffix == ".safetensors"]
    assert {name.stem for name in weights} == {"m", "checkpoint", "epoch_01", "epoch_02"}
    for name in weights:
        (made, header), (expected, wanted) = read(out.parent / name), read(whole.parent / name)
        assert header == wanted and made.keys() == expected.keys() and made, name
        for key, value in made.items():
            assert value.dtype == expected[key].dtype and torch.equal(value, expected[key]), (name, key)
    kinds = {key.split("/")[0] for key in read(out.with_suffix("") / "checkpoint.safetensors")[0]}
    assert kinds == {"module", "optimiser", "history"}


# --- killed ------------------------------------------------------------------------------------------


def test_asked_to_end_then_killed_from_outside(clip, whole, out):
    path, seen = out.with_suffix("") / "checkpoint.safetensors", None

    def strike(number):
        """Run the real command until it has written a checkpoint, then send a signal."""
        nonlocal seen
        process, patience = start(clip, out, save_every=0), time.monotonic() + 120
        while (now := path.stat().st_ino if path.exists() else None) == seen:
            assert process.poll() is None and time.monotonic() < patience, process.communicate()
            time.sleep(0.002)
        process.send_signal(number)
        _, problem = process.communicate(timeout=120)
        seen = path.stat().st_ino
        assert now is not None
        return process.returncode, problem.splitlines()

    code, told = strike(signal.SIGTERM)
    first = steps_in(out)
    assert code == 130 and 0 < first < STEPS
    assert told == [f"interrupted after step {first}; run again to go on from there", INTERRUPTED]
    code, _ = strike(signal.SIGKILL)
    assert code == -signal.SIGKILL and first < steps_in(out) < STEPS
    process = start(clip, out, save_every=0)
    told, problem = process.communicate(timeout=120)
    assert process.returncode == 0, problem
    assert json.loads(told)["steps"] == STEPS
    assert_same_end(out, whole)


@pytest.mark.parametrize("index, save_every, kept", [(2, 0, 2), (6, 3600, 4)])
def test_killed_between_the_two_halves_of_a_step(forks, whole, out, index, save_every, kept):
    code, _ = forks(out, IN_A_STEP.format(index=index, fault=KILL), save_every=save_every)
    assert code == -signal.SIGKILL and steps_in(out) == kept
    assert forks(out)[0] == 0
    assert_same_end(out, whole)


@pytest.mark.parametrize("nth, share", [(1, 0.5), (3, 0.5), (6, 1)])
def test_killed_while_a_checkpoint_is_written(forks, whole, out, nth, share):
    """With half of it on disk, or all of it and not yet under its name."""
    code, _ = forks(out, IN_A_WRITE.format(nth=nth, share=share))
    left = hidden(out)
    assert code == -signal.SIGKILL and len(left) == 1 and left[0].startswith(".checkpoint-")
    if nth == 1:
        assert not (out.with_suffix("") / "checkpoint.safetensors").exists()
    else:
        assert steps_in(out) == nth - 1
    assert forks(out)[0] == 0
    assert_same_end(out, whole)  # which also says that the leftover is gone


@pytest.mark.parametrize(
    "fault", ["MattingTask.finish_epoch = finish_and_die", "checkpoint.save = die_before_the_second"]
)
def test_killed_between_the_weights_of_an_epoch_and_its_checkpoint(forks, whole, out, fault):
    code, _ = forks(out, AFTER_AN_EPOCH + fault, save_every=3600)
    before = 0 if "finish" in fault else STEPS // 2
    epoch = out.with_suffix("") / f"epoch_{1 + 2 * before // STEPS:02d}.safetensors"
    assert code == -signal.SIGKILL and epoch.exists()
    assert steps_in(out) == before if before else not out.exists()
    assert forks(out)[0] == 0
    assert_same_end(out, whole)


def test_what_others_left_stays(forks, whole, out):
    """Of this job what a kill left is removed, of its epochs as well; not what jobs with like names left, or copies."""
    folder = out.with_suffix("")
    folder.mkdir()
    kept = [out.with_name(f".m-{name}.safetensors") for name in ("large-0123abcd.part", "1-0123abcd.part", "20260131")]
    kept += [folder / name for name in (".epoch_01-mine.safetensors", ".epoch_03-0123abcd.part.safetensors")]
    left = [path.with_name(f".{path.stem}-0123abcd.part.safetensors") for path in (out, folder / "epoch_02")]
    for path in (*kept, *left):
        path.touch()
    assert forks(out)[0] == 0
    assert sorted(hidden(out)) == sorted(path.name for path in kept)
    for path in kept:
        path.unlink()
    assert_same_end(out, whole)


# --- asked to end ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_asked_to_end(forks, whole, out, number):
    """The step under way is finished and kept, however long ago the last checkpoint was."""
    ask = f"os.kill(os.getpid(), signal.{number})"
    code, told = forks(out, IN_A_STEP.format(index=5, fault=ask), save_every=3600)
    assert code == 130 and told == ["interrupted after step 6; run again to go on from there", INTERRUPTED]
    assert steps_in(out) == 6 and not hidden(out)
    assert forks(out)[0] == 0
    assert_same_end(out, whole)


def test_asked_twice(forks, out):
    """The second request is obeyed at once; the step under way is lost, the checkpoint before it is not."""
    ask = "os.kill(os.getpid(), signal.SIGINT); os.kill(os.getpid(), signal.SIGTERM); assert False"
    code, told = forks(out, IN_A_STEP.format(index=2, fault=ask))
    assert code == 130 and told == [INTERRUPTED]
    assert steps_in(out) == 2 and not hidden(out)


# --- a full disk -------------------------------------------------------------------------------------


def test_full_disk(forks, whole, out):
    path = out.with_suffix("") / "checkpoint.safetensors"
    limit = FULL_DISK.format(bytes=1_500_000)  # enough for the generator's weights, not for a checkpoint
    assert (whole.stat().st_size, 1_500_000) < (1_500_000, (whole.with_suffix("") / path.name).stat().st_size)

    code, told = forks(out, limit)
    assert code == 2 and len(told) == 1 and told[0].startswith("i2i: ") and str(path) in told[0]
    assert "File too large" in told[0]
    assert not path.exists() and not hidden(out)

    assert forks(out, IN_A_STEP.format(index=3, fault=KILL))[0] == -signal.SIGKILL
    before = path.read_bytes()
    code, told = forks(out, limit)
    assert code == 2 and len(told) == 1 and str(path) in told[0]
    assert path.read_bytes() == before and not hidden(out)

    assert forks(out)[0] == 0
    assert_same_end(out, whole)


def test_no_room_for_the_weights_of_an_epoch(forks, whole, out):
    code, told = forks(out, FULL_DISK.format(bytes=100_000), save_every=3600)
    assert code == 2 and len(told) == 1 and str(out.with_suffix("") / "epoch_01.safetensors") in told[0]
    assert not hidden(out) and not out.exists()
    assert forks(out)[0] == 0
    assert_same_end(out, whole)


# --- checkpoints that are none -----------------------------------------------------------------------


def rewrite(change):
    """A fault that changes a checkpoint's tensors or its header and writes it as a proper file again."""

    def run(path):
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata()
        tensors = safetensors.torch.load_file(path)
        tensors, header = change(tensors, header) or (tensors, header)
        safetensors.torch.save_file(tensors, path, metadata=header)

    return run


def without_precision(header):
    """A header without checksum that has a list in the precision's place."""
    kept = {key: text for key, text in header.items() if key != "sha256"}
    return {key: re.sub(r'("precision": )"\w+"', r"\1[8]", text) for key, text in kept.items()}


def cut(share):
    return lambda path: os.truncate(path, int(path.stat().st_size * share))


def be_a_folder(path):
    path.unlink()
    path.mkdir()


WEIGHT = "module/generator/encoder.0.conv.weight"


def flip_a_bit(path):
    """One bit of a weight, in the last quarter of the file: its form stays whole."""
    codes = bytearray(path.read_bytes())
    codes[len(codes) * 3 // 4] ^= 1
    path.write_bytes(codes)


DAMAGES = {
    "a bit flipped": flip_a_bit,
    "empty": cut(0),
    "half": cut(0.5),
    "nearly whole": cut(0.9999),
    "text": lambda path: path.write_text("no checkpoint\n" * 100),
    "pickle": lambda path: torch.save({"x": torch.zeros(3)}, path),
    "a folder": be_a_folder,
    "weights": lambda path: shutil.copy(path.parent / "epoch_01.safetensors", path),
    "no header": rewrite(lambda tensors, _: (tensors, None)),
    "no JSON": rewrite(lambda tensors, header: (tensors, dict.fromkeys(header, "{"))),
    "no configuration": rewrite(lambda tensors, header: (tensors, dict.fromkeys(header, '{"about": {}}'))),
    "no precision": rewrite(lambda tensors, header: (tensors, without_precision(header))),
    "a tensor less": rewrite(lambda tensors, _: tensors.pop(WEIGHT) is None),
    "another shape": rewrite(lambda tensors, _: tensors.update({WEIGHT: torch.zeros(3)})),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_checkpoint_that_is_none(clip, whole, tmp_path, capsys, damage):
    shutil.copytree(whole.parent, tmp_path / "run")
    out = tmp_path / "run/m.safetensors"
    path = out.with_suffix("") / "checkpoint.safetensors"
    DAMAGES[damage](path)
    before = None if path.is_dir() else path.read_bytes()
    code = cli.main(["train", str(clip), str(out), *OPTIONS, "0"])
    told = capsys.readouterr()
    assert code == 2 and not told.out
    assert told.err.startswith(f"i2i: {path}: expected a whole checkpoint of this training, got ")
    assert told.err.count("\n") == 1
    assert path.is_dir() or path.read_bytes() == before  # left for its owner to look at


@pytest.mark.parametrize(
    "option, changed",
    [
        ("--epochs=3", "epochs=2 instead of 3"),
        ("--width=8", "discriminator_width=4 instead of 8, width=4 instead of 8"),
        ("--seed=1", "seed=0 instead of 1"),
    ],
)
def test_checkpoint_of_another_configuration(clip, whole, capsys, option, changed):
    before = whole.read_bytes()
    code = cli.main(["train", str(clip), str(whole), *OPTIONS, "0", option])
    told = capsys.readouterr()
    assert code == 2 and not told.out and whole.read_bytes() == before
    assert told.err.startswith(f"i2i: {whole.with_suffix('') / 'checkpoint.safetensors'}: ")
    assert changed in told.err and told.err.count("\n") == 1


@pytest.mark.parametrize("units", [True, False])
def test_on_another_machine_the_precision_is_kept(clip, whole, capsys, monkeypatch, units):
    """And another one that is asked for is refused."""
    path = whole.with_suffix("") / "checkpoint.safetensors"
    kept = json.loads(read(path)[1]["i2ilib-checkpoint"])["about"]["config"]["precision"]
    other = {"bf16": "float32", "float32": "bf16"}[kept]
    before = path.read_bytes()
    monkeypatch.setattr(gan, "has_bf16", lambda device: units)
    for option in ([], ["--precision=auto"], [f"--precision={kept}"]):
        assert cli.main(["train", str(clip), str(whole), *OPTIONS, "0", *option]) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["steps"], told["precision"]) == (STEPS, kept)
    assert cli.main(["train", str(clip), str(whole), *OPTIONS, "0", f"--precision={other}"]) == 2
    told = capsys.readouterr()
    assert not told.out and path.read_bytes() == before
    assert f"precision={kept!r} instead of {other!r}" in told.err and told.err.count("\n") == 1


def test_a_training_at_its_end_stays_as_it_is(clip, whole, capsys):
    """And the weights come back if only they are lost."""
    before = {path: path.stat().st_mtime_ns for path in whole.parent.rglob("*") if path.is_file()}
    assert cli.main(["train", str(clip), str(whole), *OPTIONS, "0"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == STEPS
    assert {path: path.stat().st_mtime_ns for path in before} == before
    content = whole.read_bytes()
    whole.unlink()
    assert cli.main(["train", str(clip), str(whole), *OPTIONS, "0"]) == 0
    assert Path(whole).read_bytes() == content
