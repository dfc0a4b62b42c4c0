"""The server as clients meet it: captured exchanges, whatever goes wrong, crowds, and its end."""

import contextlib
import io
import json
import logging
import os
import random
import socket
import struct
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
from conftest import shared
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from serving import CAPTURED, QUICK, SAME, address, server_of
from test_serve_wire import damaged

from i2ilib.errors import I2IError
from i2ilib.serve import client, conformance, wire
from i2ilib.serve import mlserver_pb2 as pb
from i2ilib.serve.menu import Option, Served, check_menu
from i2ilib.serve.server import Limits, Server, logging_to

EXAMPLES = int(os.environ.get("I2I_MALFORMED", "150"))  # 10000 for the whole corpus
SOAK = int(os.environ.get("I2I_SOAK", "300"))  # 10000 for the whole run


@pytest.fixture(scope="module")
def server():
    with server_of() as running:
        yield running


def connect(server):
    sock = socket.create_connection((server.host, server.port), timeout=20)
    return contextlib.closing(sock)


def exchange(server, sent):
    """Everything that comes back for some bytes, until the server ends its direction."""
    with connect(server) as sock:
        sock.sendall(sent)
        return conformance.until_end(sock)


def error_of(reply):
    assert int(reply[:12]) == len(reply)
    return pb.RespondWrapper.FromString(reply[12:]).error.msg


def picture(height=5, width=7):
    return conformance.plate(height, width)


# --- captured exchanges --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["info", "half", "blur", "options", "model_error"])
def test_captured_requests_get_the_captured_bytes(server, name):
    files = shared("golden/nuke")
    reply = exchange(server, (files / f"{name}_request.bin").read_bytes())
    assert reply == (files / f"{name}_response.bin").read_bytes()


def test_a_pressed_button_gets_the_picture_and_nothing_to_execute(server):
    files = shared("golden/nuke")
    reply = exchange(server, (files / "button_request.bin").read_bytes())
    theirs = pb.RespondWrapper.FromString((files / "button_response.bin").read_bytes()[12:])
    assert theirs.r2.objects[0].name == "PythonScript"
    theirs.r2.ClearField("objects")
    theirs.r2.num_objects = 0
    assert reply == wire.pack(theirs, response=True)


def test_an_unknown_model_is_told_where_the_peer_is_silent(server):
    told = error_of(exchange(server, (shared("golden/nuke") / "unknown_model_request.bin").read_bytes()))
    assert "expected box_blur or every_option or half, got 'absent'" in told


# --- the kit against this server, and against worse ones -------------------------------------------------


def test_the_server_passes_its_own_kit():
    with server_of(SAME, *CAPTURED) as running:
        found = conformance.check(running.host, running.port, seconds=20)
    assert len(found) > 20 and [str(one) for one in found if not one.ok] == []


def test_every_option_of_a_model_is_tried_by_the_kit(server):
    found = conformance.check(server.host, server.port, model="Every Option", seconds=20)
    assert [str(one) for one in found if not one.ok] == []


@contextlib.contextmanager
def worse(answer):
    """A server that answers as it is told to, one connection after the other; ``answer(sock)``."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=100)
    ended = threading.Event()

    def work():
        while not ended.is_set():
            with contextlib.suppress(OSError):
                sock, _ = listener.accept()
                with sock:
                    sock.settimeout(0.3)
                    answer(sock)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield conformance.Node(*listener.getsockname(), 1.0)
    finally:
        ended.set()
        with contextlib.suppress(OSError):
            socket.create_connection(listener.getsockname(), timeout=1).close()
        thread.join(5)
        listener.close()


def reply_with(message):
    def answer(sock):
        sock.recv(1 << 20)
        sock.sendall(wire.pack(message, response=True))

    return answer


def listing(*models, number=None):
    return pb.RespondWrapper(r1=pb.RespondInfo(num_models=len(models) if number is None else number, models=models))


def test_the_kit_finds_a_server_that_closes_in_silence_and_waits_for_the_silent():
    good = Served("same", "Same", lambda images, values, work: images[0]).describe()

    def peer(sock):
        digits = sock.recv(12)
        if digits.isdigit() and int(digits) == 6:
            sock.recv(6)
            sock.sendall(wire.pack(listing(good), response=True))

    with worse(peer) as node:
        found = {one.name: one for one in conformance.check(node.host, node.port, seconds=1.0)}
    assert found["the list of models"].ok
    for name in ("garbage instead of a header", "an unknown model", "a picture, in the size of the request"):
        assert not found[name].ok


def test_the_node_ends_where_it_trusts_a_list():
    model = pb.Model(name="a", label="A")
    with worse(reply_with(listing(model, number=2))) as node, pytest.raises(conformance.NodeEnds, match="2 models"):
        node.list_models()
    empty = pb.Model(name="a", label="A", int_options=[pb.IntAttrib(name="n")])
    with worse(reply_with(listing(empty))) as node, pytest.raises(conformance.NodeEnds, match="no value"):
        node.list_models()
    with worse(reply_with(listing())) as node, pytest.raises(conformance.NodeError, match="no models"):
        node.list_models()
    with worse(reply_with(pb.RespondWrapper(error=pb.Error(msg="away")))) as node:
        with pytest.raises(conformance.NodeError, match="away"):
            node.list_models()
        assert not conformance.check(node.host, node.port, seconds=1)[0].ok


@pytest.mark.parametrize("last", [True, False])
def test_a_list_that_is_cut_off_ends_the_node_unless_its_number_comes_last(last):
    models = [pb.Model(name=f"m{i}", label=f"M{i}", inputs=[pb.ImagePrototype(name="x" * 50)]) for i in range(40)]
    number = pb.RespondInfo(num_models=40).SerializeToString()
    every = pb.RespondInfo(models=models).SerializeToString()
    inner = every + number if last else number + every
    whole = b"\x12" + wire._varint(len(inner)) + inner

    def two_pieces(sock):
        sock.recv(100)
        sock.sendall(wire.header(len(whole) + 12) + whole[:1300])
        time.sleep(0.2)
        sock.sendall(whole[1300:])

    expected = (conformance.NodeError, "no models") if last else (conformance.NodeEnds, "40 models announced")
    with worse(two_pieces) as node, pytest.raises(expected[0], match=expected[1]):
        node.list_models()


def response(planes, **image):
    c, h, w = planes.shape
    told = {"width": w, "height": h, "channels": c, "image": planes[:, ::-1].tobytes()} | image
    return pb.RespondWrapper(r2=pb.RespondInference(num_images=1, images=[pb.Image(**told)]))


def test_one_plane_fills_red_alone_and_a_fourth_is_passed_over():
    one, four = picture()[:1], np.concatenate([picture(), picture()[:1]])
    with worse(reply_with(response(one))) as node:
        shown = node.exchange(b"x", size=(5, 7))
        assert np.array_equal(shown[0], one[0]) and not shown[1:].any()
    with worse(reply_with(response(four))) as node:
        assert np.array_equal(node.exchange(b"x", size=(5, 7)), four[:3])
        assert np.array_equal(node.exchange(b"x", size=(5, 7), channels=4), four)


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (response(picture(), width=8), "different dimensions"),
        (response(picture(), image=bytes(8)), "too few samples"),
        (pb.RespondWrapper(), "No image"),
        (pb.RespondWrapper(error=pb.Error(msg="because"), r2=response(picture()).r2), "because"),
    ],
)
def test_what_the_node_tells_its_user(message, told):
    with worse(reply_with(message)) as node, pytest.raises(conformance.NodeError, match=told):
        node.exchange(b"x", size=(5, 7))


def test_a_connection_left_open_keeps_the_node_waiting():
    ended = threading.Event()

    def stays(sock):
        sock.recv(100)
        sock.sendall(wire.pack(response(picture()), response=True))
        ended.wait(5)

    with worse(stays) as node:
        with pytest.raises(conformance.NodeError, match="waits for ever"):
            node.exchange(b"x", size=(5, 7))
        ended.set()


def test_an_early_answer_without_draining_is_lost():
    def hasty(sock):
        sock.recv(12)
        sock.sendall(wire.pack(pb.RespondWrapper(error=pb.Error(msg="no")), response=True))

    with worse(hasty) as node, pytest.raises(conformance.NodeError, match="Failed to read"):
        node.exchange(bytes(30_000_000), size=(5, 7))


def test_nobody_there_is_told_after_five_attempts():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    began = time.monotonic()
    with pytest.raises(conformance.NodeError, match="Could not connect"):
        conformance.Node(port=port).list_models()
    assert time.monotonic() - began > 1.9  # four pauses of half a second


def test_the_text_of_a_saved_script(server):
    node = conformance.Node(server.host, server.port)
    told = "model:Every Option;row_shift:-2;gain:1;flip_sign:0;tag:none;report:0;"
    assert node.knobs("Every Option", {"row_shift": -2}) == told
    with pytest.raises(conformance.NodeError, match="no model"):
        node.knobs("None Such")


def test_the_kit_is_a_program(server, capsys):
    port = str(server.port)
    assert conformance.main(["--port", port, "--model", "Half", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"]
    assert conformance.main(["--port", port, "--model", "None Such"]) == 1
    assert "FAIL  the model" in capsys.readouterr().out


# --- upright, and of any size --------------------------------------------------------------------------


def test_pictures_stay_upright_whatever_their_size():
    def corner(images, values, work):
        """Keep the top left quarter alone."""
        out = np.zeros_like(images[0])
        h, w = images[0].shape[1] // 2, images[0].shape[2] // 2
        out[:, :h, :w] = images[0][:, :h, :w]
        return out

    with server_of(Served("corner", "Corner", corner)) as running:
        node = conformance.Node(running.host, running.port)
        for height, width in ((6, 10), (1, 1), (33, 2), (101, 57)):
            plate = picture(height, width)
            expected = corner([plate], {}, None)
            assert np.array_equal(node.render("Corner", [plate]), expected)
            assert np.array_equal(client.run(address(running), "corner", [plate]), expected)


# --- what models do ------------------------------------------------------------------------------------


def failing(images, values, work):
    if values["how"] == "exit":
        raise SystemExit(3)
    if values["how"] == "memory":
        raise MemoryError
    if values["how"] == "doubles":
        return images[0].astype(np.float64) * 1e300
    if values["how"] == "smaller":
        return images[0][:, 1:]
    if values["how"] == "nothing":
        return None
    raise ZeroDivisionError("by zero")


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("exit", "SystemExit: 3 (request 0"),
        ("memory", "not enough memory"),
        ("smaller", "planes of 7 x 5"),
        ("nothing", "planes of 7 x 5"),
        ("raise", "ZeroDivisionError: by zero (request 0"),
    ],
)
def test_a_model_that_fails_is_told_and_logged_and_others_live(how, told):
    log = io.StringIO()
    model = Served("failing", "Failing", failing, options=(Option("how", "raise"),))
    with logging_to(log), server_of(model) as running:
        with pytest.raises(client.Told) as caught:
            client.run(address(running), "failing", [picture()], {"how": how})
        assert told in str(caught.value)
        assert len(client.models(address(running))) == 1
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    (line,) = [line for line in lines if line["event"] == "request" and line.get("kind") == "inference"]
    assert line["outcome"] == "error" and line["cause"] and line["size"] == "7 x 5" and line["options"] == {"how": how}
    assert line["id"] in str(caught.value) or how not in ("exit", "raise")
    if how in ("exit", "raise"):
        assert any("Traceback" in line.get("trace", "") and line["id"] for line in lines)


def test_doubles_become_float32_of_the_right_size():
    model = Served("failing", "Failing", failing, options=(Option("how", "doubles"),))
    with server_of(model) as running:
        out = client.run(address(running), "failing", [picture()])
    assert out.dtype == np.float32 and np.isinf(out[picture() > 0]).all() and not out[picture() == 0].any()


def test_options_stay_with_their_request_and_are_checked(server):
    where = address(server)
    menu = [model.SerializeToString() for model in client.models(where)]
    plate = picture()
    assert np.array_equal(client.run(where, "half", [plate], {"gain": "0.25"}), plate / 4)
    assert np.array_equal(client.run(where, "half", [plate]), plate / 2)
    assert [model.SerializeToString() for model in client.models(where)] == menu
    with pytest.raises(client.Told, match="from 0 to 50"):
        client.run(where, "box_blur", [plate], {"radius": 51})
    with pytest.raises(client.Told, match=r"expected 2 \(plate, matte\), got 1"):
        client.run(where, "every_option", [plate])
    with pytest.raises(client.Told, match="one size"):
        client.run(where, "every_option", [plate, picture(4, 4)])


HALF = CAPTURED[2]


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (pb.Model(float_options=[pb.FloatAttrib(name="gain")]), "one value, got 0"),
        (pb.Model(float_options=[pb.FloatAttrib(name="gain", values=[1, 2])]), "one value, got 2"),
        (pb.Model(float_options=[pb.FloatAttrib(name="gain", values=[1])] * 2), "got it twice"),
        (pb.Model(float_options=[pb.FloatAttrib(name="gain", values=[float("nan")])]), "finite"),
        (pb.Model(int_options=[pb.IntAttrib(name="gain", values=[1])]), "a int of that name"),
        (pb.Model(string_options=[pb.StringAttrib(name="function", values=["x"])]), "float gain"),
        (pb.Model(button_options=[pb.BoolAttrib(name="run", values=[True])]), "float gain"),
        (pb.Model(mc_options=[pb.MultipleChoiceOption(name="x")]), "mc_options"),
    ],
)
def test_only_declared_options_with_their_type_and_one_value(model, told):
    with pytest.raises(I2IError, match=told):
        HALF.values(model)


def test_values_come_back_typed():
    every = CAPTURED[1]
    values = {"flip_sign": True, "row_shift": -(2**31), "gain": 0.5, "tag": "café", "report": True}
    assert every.values(every.describe(values)) == values
    assert every.values(pb.Model()) == {o.name: o.default for o in every.options}
    assert Option("x", 0.1).default == float(np.float32(0.1))
    with pytest.raises(I2IError, match="its options"):
        every.describe({"other": 1})


@pytest.mark.parametrize(
    "make",
    [
        lambda: Option("host", 1),
        lambda: Option("a b", 1),
        lambda: Option("a:b", 1),
        lambda: Option("größe", 1),
        lambda: Option("x", 3, high=2),
        lambda: Option("x", 2**31),
        lambda: Option("x", float("inf")),
        lambda: Option("x", "a;b"),
        lambda: Option("x", "c", choices=("a", "b")),
        lambda: Served("a;b", "A", None),
        lambda: Served("a", " ", None),
        lambda: Served("a", "A", None, inputs=()),
        lambda: Served("a", "A", None, options=(Option("x", 1), Option("x", "text"))),
        lambda: check_menu([]),
        lambda: check_menu([SAME, SAME]),
        lambda: check_menu([SAME, Served("other", "Same", None)]),
    ],
)
def test_menus_that_a_node_cannot_take_are_refused(make):
    with pytest.raises(I2IError):
        make()


# --- those who are slow, silent, many or gone --------------------------------------------------------------


def test_ten_gigabytes_are_refused_at_once_and_cost_no_memory(server):
    before, began = psutil.Process().memory_info().rss, time.monotonic()
    with connect(server) as sock:
        sock.sendall(b"010000000000")
        told = conformance._until_answer(sock)
    assert time.monotonic() - began < 2
    assert b"at most 1073741824 bytes, got 10000000000" in told
    assert psutil.Process().memory_info().rss - before < 1 << 24


def test_an_announced_gigabyte_that_does_not_come_takes_nothing():
    with server_of(SAME) as running, contextlib.ExitStack() as stack:
        before = psutil.Process().memory_info().rss
        for _ in range(20):
            stack.enter_context(connect(running)).sendall(b"001000000000" + bytes(1000))
        time.sleep(0.3)
        assert np.array_equal(client.run(address(running), "same", [picture()]), picture())
        assert psutil.Process().memory_info().rss - before < 20 * 40e6  # a step each, not a gigabyte


def test_the_silent_and_the_slow_are_told_and_block_nobody():
    with server_of(SAME) as running, contextlib.ExitStack() as stack:
        silent = [stack.enter_context(connect(running)) for _ in range(10)]
        begun = [stack.enter_context(connect(running)) for _ in range(10)]
        for sock in begun:
            sock.sendall(b"000000001000" + b"\x08")
        began = time.monotonic()
        assert np.array_equal(client.run(address(running), "same", [picture()]), picture())
        assert time.monotonic() - began < QUICK.header_seconds
        for sock in silent:
            assert "12 digits, got 0 in 1 s" in error_of(conformance.until_end(sock))
        for sock in begun:
            assert "1000 bytes" in error_of(conformance.until_end(sock))


def test_one_who_trickles_is_ended_by_the_whole_message():
    limits = Limits(stall_seconds=0.5, bytes_a_second=1e5, drain_seconds=1)
    with server_of(SAME, limits=limits) as running, connect(running) as sock:
        sock.sendall(b"000000001000")
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - began < 10:
                sock.sendall(b"\x08")
                time.sleep(0.1)
                with contextlib.suppress(BlockingIOError):
                    if sock.recv(1, socket.MSG_DONTWAIT):
                        break
        assert time.monotonic() - began < 5


def test_one_who_does_not_read_the_answer_is_left():
    with server_of(SAME, limits=Limits(stall_seconds=0.5, drain_seconds=0.5)) as running, connect(running) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.sendall(b"".join(wire.request(SAME.describe(), [picture(1500, 1500)])))
        end = time.monotonic() + 10
        while running.visits and time.monotonic() < end:
            time.sleep(0.05)
        assert not running.visits and running.memory.used == 0


def test_a_refusal_is_read_although_megabytes_are_still_coming(server):
    sent = bytearray(b"".join(wire.request(HALF.describe(), [picture(1000, 1000)])))
    sent[:12] = b"019999999999"
    with connect(server) as sock:
        sock.sendall(sent)  # the client reads when it has sent all
        assert "at most" in pb.RespondWrapper.FromString(conformance._until_answer(sock)).error.msg


def slow(seconds, counted):
    def function(images, values, work):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            work.check()
            time.sleep(0.01)
        counted.append(1)
        return images[0]

    return Served("slow", "Slow", function)


def test_thirty_two_clients_of_a_slow_model_are_all_answered():
    with server_of(slow(0.15, []), SAME, limits=Limits(slots=8)) as running:
        node = conformance.Node(running.host, running.port)
        node.list_models()
        with ThreadPoolExecutor(33) as crowd:
            shown = [crowd.submit(node.render, "Slow", [picture()]) for _ in range(32)]
            assert all(np.array_equal(one.result(30), picture()) for one in shown)


def test_a_client_that_leaves_cancels_its_work():
    done = []
    with server_of(slow(30, done)) as running:
        with connect(running) as sock:
            sock.sendall(b"".join(wire.request(running.models["slow"].describe(), [picture()])) + b"more")
            time.sleep(0.4)
            assert running.visits
        end = time.monotonic() + 5
        while running.visits and time.monotonic() < end:
            time.sleep(0.02)
        assert not running.visits and not done


def test_too_many_clients_are_told():
    limits = Limits(connections=3, header_seconds=5)
    with server_of(SAME, limits=limits) as running, contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(connect(running)) for _ in range(3)]
        time.sleep(0.3)
        assert "at most 3 clients at once" in error_of(exchange(running, wire.INFO_REQUEST))
        crowd[0].close()
        time.sleep(0.3)
        assert len(client.models(address(running))) == 1


def test_too_many_who_wait_are_told_and_small_ones_do_not_wait_for_large_ones():
    limits = Limits(slots=1, waiting=1)
    with server_of(slow(1.0, []), SAME, limits=limits) as running, ThreadPoolExecutor(4) as crowd:
        where, large = address(running), picture(900, 900)
        first = crowd.submit(client.run, where, "slow", [large])
        time.sleep(0.3)
        second = crowd.submit(client.run, where, "slow", [large])
        time.sleep(0.3)
        with pytest.raises(client.Told, match="at most 1 requests that wait"):
            client.run(where, "slow", [large])
        assert np.array_equal(client.run(where, "same", [picture()]), picture())
        assert not second.done()
        first.result(10)
        second.result(10)


def test_memory_for_messages_runs_out_and_comes_back():
    limits = Limits(memory_bytes=1 << 20, stall_seconds=0.3, drain_seconds=3, bytes_a_second=1e9)
    with server_of(slow(3.0, []), limits=limits) as running, ThreadPoolExecutor(3) as crowd:
        sent = b"".join(wire.request(running.models["slow"].describe(), [picture(250, 250)]))
        held = [crowd.submit(exchange, running, sent) for _ in range(2)]  # the second goes beyond the limit
        time.sleep(0.4)
        assert "memory for one more picture" in error_of(exchange(running, sent))
        assert all(len(one.result(20)) > 700_000 for one in held)
        assert running.memory.used == 0


# --- anything at all ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def patient():
    with server_of(*CAPTURED, limits=Limits(header_seconds=0.3, stall_seconds=0.3, drain_seconds=0.5)) as running:
        yield running


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    st.one_of(
        damaged().map(lambda data: wire.header(len(data)) + data),
        damaged().flatmap(lambda data: st.integers(0, 300).map(lambda n: wire.header(n) + data)),
        st.binary(max_size=100),
    ),
    st.booleans(),
)
def test_whatever_comes_is_answered_or_closed_in_time_and_the_server_lives(patient, sent, ends):
    began = time.monotonic()
    with connect(patient) as sock, contextlib.suppress(ConnectionError):
        sock.sendall(sent)
        if ends:
            sock.shutdown(socket.SHUT_WR)
        reply = conformance.until_end(sock)
        if reply:
            assert int(reply[:12]) == len(reply)
            pb.RespondWrapper.FromString(reply[12:])
    assert time.monotonic() - began < 5
    assert exchange(patient, wire.INFO_REQUEST)[12:14] == b"\x08\x01"


def test_a_soak_with_clients_killed_at_random():
    rng, process = random.Random(0), psutil.Process()
    sizes = [(1, 1), (7, 5), (64, 64), (100, 333), (512, 300)]
    plates = {size: picture(*size) for size in sizes}
    kinds = ["run"] * 6 + ["info", "kill", "half way", "garbage", "reset"]
    wrong, memory = [], []
    with server_of(SAME, *CAPTURED, limits=Limits(stall_seconds=5, drain_seconds=1)) as running:
        node = conformance.Node(running.host, running.port)
        node.list_models()

        def one(job):
            kind, size, gain = job
            plate = plates[size]
            sent = b"".join(wire.request(HALF.describe({"gain": gain}), [plate]))
            if kind == "run":
                if not np.array_equal(node.render("Half", [plate], {"gain": gain}), np.float32(gain) * plate):
                    wrong.append(job)
            elif kind == "info":
                if len(conformance.Node(running.host, running.port).list_models()) != 4:
                    wrong.append(job)
            else:
                with connect(running) as sock, contextlib.suppress(ConnectionError):
                    if kind == "reset":
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    sock.sendall(
                        {"half way": sent[: len(sent) // 2], "garbage": bytes(rng.randbytes(50))}.get(kind, sent)
                    )
                    if kind == "kill":
                        sock.recv(10)

        with ThreadPoolExecutor(8) as crowd:
            for _ in range(10):
                jobs = [(rng.choice(kinds), rng.choice(sizes), rng.choice([0.25, 0.5, 2.0])) for _ in range(SOAK // 10)]
                list(crowd.map(one, jobs))
                memory.append(process.memory_info().rss)
        end = time.monotonic() + 20
        while running.visits and time.monotonic() < end:
            time.sleep(0.05)
        assert not running.visits and running.memory.used == 0
    assert wrong == []
    assert max(memory[5:]) - max(memory[:5]) < 64 << 20


# --- the end, the log, the metrics --------------------------------------------------------------------------


def test_stopping_finishes_what_has_begun_and_takes_no_more():
    with server_of(slow(0.8, []), limits=Limits()) as running, ThreadPoolExecutor(1) as crowd:
        where = address(running)
        begun = crowd.submit(client.run, where, "slow", [picture()])
        with connect(running) as silent:
            time.sleep(0.4)
            assert running.stop()
            assert "before it ends" in error_of(conformance.until_end(silent))
        assert np.array_equal(begun.result(5), picture())
        with pytest.raises(client.Unreachable, match="i2i serve"):
            client.models(where)


def test_stopping_in_a_hurry_cancels():
    done = []
    with server_of(slow(30, done), limits=Limits()) as running, ThreadPoolExecutor(1) as crowd:
        begun = crowd.submit(client.run, address(running), "slow", [picture()])
        time.sleep(0.4)
        assert not running.stop(seconds=0.1)
        with pytest.raises(client.Unreachable, match="whole response"):
            begun.result(5)
    assert not done


def test_who_waits_for_memory_is_not_called_slow():
    limits = Limits(memory_bytes=1 << 20, stall_seconds=0.4, drain_seconds=3, bytes_a_second=1e9)
    with server_of(slow(1.0, []), limits=limits) as running, ThreadPoolExecutor(3) as crowd:
        sent = b"".join(wire.request(running.models["slow"].describe(), [picture(250, 250)]))
        replies = [crowd.submit(exchange, running, sent) for _ in range(3)]  # the third waits for longer than a stall
        assert all(len(one.result(20)) > 700_000 for one in replies)


def test_addresses_that_cannot_be_served_are_refused():
    with pytest.raises(I2IError, match="numeric IPv4"):
        Server([SAME], host="localhost", port=0)
    with server_of(SAME) as running:
        with pytest.raises(I2IError, match="that is free"):
            Server([SAME], port=running.port)
        with pytest.raises(I2IError, match="metrics port"):
            Server([SAME], port=0, metrics_port=running.port)
    with pytest.raises(I2IError, match="that is free"):
        Server([SAME], port=70000)


@pytest.mark.parametrize("field", ["connections", "header_seconds", "message_bytes", "slots"])
def test_limits_are_positive(field):
    with pytest.raises(I2IError, match=field):
        Limits(**{field: 0})


def test_a_message_limit_stays_below_what_a_client_can_take():
    with pytest.raises(I2IError, match="message_bytes"):
        Limits(message_bytes=2**31)


def test_the_log_says_who_what_and_why_and_holds_no_line_breaks_from_the_wire():
    log = io.StringIO()
    with logging_to(log), server_of(SAME) as running:
        client.run(address(running), "same", [picture()])
        strange = b"".join(wire.request(pb.Model(name='x\n{"event": "forged"}'), [picture()]))
        assert error_of(exchange(running, strange))
        exchange(running, b"garbage more")
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert {line["event"] for line in lines} == {"request"}
    outcomes = [(line["outcome"], line.get("cause")) for line in lines]
    assert outcomes == [("ok", None), ("ok", None), ("refused", "model"), ("refused", "malformed")]
    assert len({line["id"] for line in lines}) == 4
    marks = lines[1]["milliseconds"]
    assert list(marks) == ["header", "received", "admitted", "computed", "sent"] and list(marks.values()) == sorted(
        marks.values()
    )
    (quiet,) = logging.getLogger("i2ilib.serve").handlers
    assert isinstance(quiet, logging.NullHandler)


def test_the_page_of_metrics_is_what_prometheus_reads():
    with server_of(SAME, metrics_port=0) as running:
        for _ in range(3):
            client.run(address(running), "same", [picture()])
        exchange(running, b"".join(wire.request(pb.Model(name="x{y}"), [picture()])))
        time.sleep(0.1)
        page = urllib.request.urlopen(f"http://127.0.0.1:{running.metrics_port}/metrics", timeout=10).read().decode()
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }
    assert samples["i2i_requests_total", ("model", "same"), ("outcome", "ok")] == 3
    assert samples["i2i_requests_total", ("model", "unknown"), ("outcome", "refused")] == 1
    assert samples["i2i_request_seconds_count",] == samples["i2i_request_seconds_bucket", ("le", "+Inf")] == 3
    assert 0 < samples["i2i_recent_request_seconds", ("quantile", "0.5")] < 5
    for name in ("patches_total", "batch_fill", "patches_per_second", "requests_waiting", "connections"):
        assert (f"i2i_{name}",) in samples


# --- the small client ------------------------------------------------------------------------------------------


def test_the_client_types_what_it_is_given_and_refuses_the_rest(server):
    where = address(server)
    every, plate = client.models(where)[1], picture()
    values = {"flip_sign": "true", "row_shift": "1", "gain": "2", "tag": "x", "report": "0"}
    chosen = CAPTURED[1].values(client.with_values(every, values))
    assert chosen == {"flip_sign": True, "row_shift": 1, "gain": 2.0, "tag": "x", "report": False}
    out = client.run(where, every, [plate, plate], values)
    assert np.array_equal(out, -np.roll(plate, 1, axis=1) * np.float32(2) + plate)
    with pytest.raises(I2IError, match="option row_shift"):
        client.with_values(every, {"row_shift": "much"})
    with pytest.raises(I2IError, match="got 'other'"):
        client.with_values(every, {"other": 1})
    with pytest.raises(I2IError, match="got 'none'"):
        client.run(where, "none", [plate])
    with pytest.raises(I2IError, match="retries"):
        client.models(address(server, retries=-1))


def test_the_client_gives_up_on_silence_and_tries_again_as_told():
    calls = []

    def silent(sock):
        calls.append(1)
        sock.recv(100)

    with worse(silent) as node:
        where = client.Address(node.host, node.port, seconds=1, retries=2, pause=0.01)
        with pytest.raises(client.Unreachable, match="end of the connection"):
            client.models(where)
    assert len(calls) >= 3
    with worse(lambda sock: time.sleep(0.5)) as node, pytest.raises(client.Unreachable):
        client.models(client.Address(node.host, node.port, seconds=0.1))
    with worse(reply_with(pb.RespondWrapper())) as node, pytest.raises(wire.WireError, match="a picture"):
        client.run(client.Address(node.host, node.port), HALF.describe(), [picture()])
