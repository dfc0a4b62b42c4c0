"""Servers as programs of their own: signals, a kill and a restart, and two of them behind a balancer."""

import json
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
from serving import SAME, SLOW, server_of

from i2ilib.serve import client, conformance
from i2ilib.serve.server import Limits

HERE = Path(__file__).resolve().parent
PLATE = conformance.plate(20, 30)


class Program:
    """A server in a process of its own."""

    def __init__(self, port=0):
        command = [sys.executable, str(HERE / "serving.py"), str(port)]
        self.process = subprocess.Popen(
            command, cwd=HERE.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.port = int(self.process.stdout.readline())

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.process.kill()
        self.process.communicate()

    def address(self, **how):
        return client.Address(port=self.port, **how)

    def send(self, number):
        self.process.send_signal(number)

    def end(self):
        """Exit status and the events of its log."""
        _, told = self.process.communicate(timeout=20)
        return self.process.returncode, [json.loads(line) for line in told.splitlines()]


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def test_a_hang_up_is_survived_and_a_termination_finishes_what_has_begun():
    with Program() as program, ThreadPoolExecutor(1) as other:
        program.send(signal.SIGHUP)
        begun = other.submit(client.run, program.address(), SLOW.describe({"seconds": 1.0}), [PLATE])
        time.sleep(0.5)
        assert not begun.done()
        program.send(signal.SIGTERM)
        assert np.array_equal(begun.result(10), PLATE)
        status, log = program.end()
    assert status == 0
    assert [(line["event"], line["signal"]) for line in log if "signal" in line] == [
        ("passed over", "SIGHUP"),
        ("ending", "SIGTERM"),
    ]
    assert [line["outcome"] for line in log if line["event"] == "request"] == ["ok"]


def test_a_second_termination_ends_at_once():
    with Program() as program, ThreadPoolExecutor(1) as other:
        begun = other.submit(client.run, program.address(), SLOW.describe({"seconds": 50.0}), [PLATE])
        time.sleep(0.5)
        program.send(signal.SIGTERM)
        time.sleep(0.5)
        assert program.process.poll() is None
        program.send(signal.SIGTERM)
        assert program.end()[0] == 128 + signal.SIGTERM
        with pytest.raises(client.Unreachable):
            begun.result(10)


def test_killed_and_started_again_clients_that_retry_succeed():
    def one(where):
        return client.run(where, SLOW.describe(), [PLATE])

    with Program() as first, ThreadPoolExecutor(6) as crowd:
        where = first.address(retries=100, pause=0.1)
        results = [crowd.submit(one, where) for _ in range(40)]
        while not results[5].done():
            time.sleep(0.01)
        first.send(signal.SIGKILL)
        first.process.wait(10)
        assert not all(result.done() for result in results)
        with Program(first.port):
            assert all(np.array_equal(result.result(60), PLATE) for result in results)


@pytest.fixture
def balancer(tmp_path):
    """The documented configuration, with free ports: the address to ask, and those of its servers."""
    program = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        pytest.skip("haproxy is not installed (apt-get install haproxy)")
    ports = {old: free_port() for old in ("55555", "55601", "55602")}
    text = (HERE.parent / "docs" / "serve" / "haproxy.cfg").read_text()
    file = tmp_path / "haproxy.cfg"
    file.write_text(re.sub(r"(?<=127\.0\.0\.1:)\d+", lambda match: str(ports[match.group()]), text))
    checked = subprocess.run([program, "-c", "-f", str(file)], capture_output=True, text=True)
    assert checked.returncode == 0 and "WARNING" not in checked.stderr, checked.stderr
    running = subprocess.Popen([program, "-db", "-f", str(file)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    yield tuple(ports.values())
    running.kill()
    running.wait()


def test_two_servers_behind_a_balancer_and_one_of_them_killed(balancer):
    front, one, two = balancer
    served = []

    def ask(number):
        plate = conformance.plate(10 + number % 7, 30)
        where = client.Address(port=front, retries=50, pause=0.1)
        assert np.array_equal(client.run(where, SLOW.describe(), [plate]), plate)
        served.append(number)

    with Program(one) as killed, Program(two) as other, ThreadPoolExecutor(8) as crowd:
        end = time.monotonic() + 20
        node = conformance.Node(port=front)
        while time.monotonic() < end:  # until the balancer has seen them
            try:
                node.list_models()
                break
            except (conformance.NodeError, conformance.NodeEnds):
                time.sleep(0.2)
        time.sleep(1.2)
        assert np.array_equal(node.render("Slow", [PLATE]), PLATE)  # the real client's way, half-close and all
        results = [crowd.submit(ask, number) for number in range(60)]
        while len(served) < 15:
            time.sleep(0.01)
        killed.send(signal.SIGKILL)
        for result in results:
            result.result(60)
        killed.process.wait(10)
        other.send(signal.SIGTERM)
        status, log = other.end()
    assert status == 0 and sorted(served) == list(range(60))
    alone = sum(line.get("kind") == "inference" and line["outcome"] == "ok" for line in log)
    assert 30 < alone < 61  # the other one had its part before it was killed


def test_the_script_for_nuke_connects_a_node_and_takes_its_red_as_alpha(monkeypatch):
    nuke = MagicMock()
    monkeypatch.setitem(sys.modules, "nuke", nuke)
    runpy.run_path(str(HERE.parent / "docs" / "serve" / "nuke_mattes.py"))
    node = nuke.createNode.return_value
    assert nuke.createNode.call_args.args == ("MLClient",)
    assert [call.args[0] for call in node.__getitem__.call_args_list] == ["host", "port", "connect"]
    node.setInput.assert_called_once_with(0, nuke.selectedNode.return_value)
    wanted = {"inputs": [nuke.selectedNode.return_value, node], "from0": "rgba.red", "to0": "rgba.alpha"}
    assert nuke.nodes.Copy.call_args.kwargs == wanted


def test_a_server_ends_with_nothing_left_running():
    before = threading.active_count()
    with server_of(SAME, limits=Limits()) as running:
        assert np.array_equal(client.run(client.Address(port=running.port), "same", [PLATE]), PLATE)
    assert threading.active_count() == before
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", running.port), timeout=1)
