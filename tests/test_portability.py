"""Nothing in the library takes Linux or x86 for granted: what other systems lack is asked for first, or named here."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import i2ilib

HOME = Path(i2ilib.__file__).parent
WORKERS = ("deploy/vart_worker.py", "quant/nndct_worker.py")  # run in AMD's containers, which are Linux
SOURCES = {
    name: ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(HOME.rglob("*.py"))
    if (name := path.relative_to(HOME).as_posix()) not in WORKERS
}
POSIX_MODULES = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
POSIX_NAMES = {  # what Windows lacks; sched_getaffinity macOS does, too
    "os": {"chown", "fork", "getloadavg", "getuid", "kill", "killpg", "mkfifo", "nice", "openpty", "pread", "pwrite"}
    | {"sched_getaffinity", "setsid", "statvfs", "sysconf", "uname", "waitpid"},
    "signal": {"SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGUSR1", "SIGUSR2", "alarm", "setitimer"},
}
KNOWN = {("deploy/vart.py", "os.pread")}  # refuses Windows, for which the card has no driver
ROOTED = re.compile(r"/(bin|dev|etc|home|proc|root|run|sys|tmp|usr|var)(/|$)")

# Imports everything, so that other libraries are there; then again, in a process that looks like another system's.
ELSEWHERE = """
import importlib, os, pkgutil, signal, sys
import i2ilib

names = [m.name for m in pkgutil.walk_packages(i2ilib.__path__, "i2ilib.") if not m.name.endswith("__main__")]
names = [name for name in names if not name.endswith("_worker")]
for name in names:
    importlib.import_module(name)
for name in [name for name in sys.modules if name.partition(".")[0] == "i2ilib"]:
    del sys.modules[name]
sys.platform = sys.argv[1]
for module in {modules}:
    sys.modules[module] = None
for module, lacking in {names}.items():
    for name in lacking & set(vars(sys.modules[module])):
        delattr(sys.modules[module], name)
for name in names:
    importlib.import_module(name)
print(len(names))
"""


def nodes(kind):
    """Every node of a kind, with the file that it is in."""
    for name, tree in SOURCES.items():
        yield from ((name, node) for node in ast.walk(tree) if isinstance(node, kind))


def test_no_call_that_another_system_lacks():
    used = {
        (name, f"{node.value.id}.{node.attr}")
        for name, node in nodes(ast.Attribute)
        if isinstance(node.value, ast.Name) and node.attr in POSIX_NAMES.get(node.value.id, ())
    }
    assert used == KNOWN


def test_text_has_an_encoding_of_its_own():
    """Windows reads and writes another one by default."""
    for name, node in nodes(ast.Call):
        if "encoding" in {keyword.arg for keyword in node.keywords}:
            continue
        called = getattr(node.func, "attr", getattr(node.func, "id", ""))
        assert called not in ("read_text", "write_text"), f"{name}:{node.lineno}"
        if isinstance(node.func, ast.Name) and called == "open":
            mode = node.args[1].value if len(node.args) > 1 else "r"
            assert "b" in mode, f"{name}:{node.lineno}"


def test_no_path_of_one_system():
    found = {name for name, node in nodes(ast.Constant) if isinstance(node.value, str) and ROOTED.match(node.value)}
    assert found == {"deploy/energy.py"}  # meters of Linux, which say so where there is no such tree


@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_every_module_imports_on(system):
    code = ELSEWHERE.format(modules=POSIX_MODULES, names=POSIX_NAMES)
    done = subprocess.run([sys.executable, "-c", code, system], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= len(SOURCES) - 2  # the package itself, and __main__
