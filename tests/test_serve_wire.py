"""Bytes on the wire: against captured exchanges, against protobuf itself, and against whatever may come."""

import importlib
import os
import re
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import shared
from google.protobuf import descriptor_pb2
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from i2ilib.serve import mlserver_pb2 as pb
from i2ilib.serve import wire

HERE = Path(pb.__file__).parent
EXAMPLES = int(os.environ.get("I2I_MALFORMED", "300"))  # 10000 for the whole corpus


def captured(name):
    return (shared("golden/nuke") / name).read_bytes()


def samples(name):
    return np.fromfile(shared("golden/nuke") / name, "<f4").reshape(3, 12, 16)[:, ::-1]


# --- the schema --------------------------------------------------------------------------------------


def test_generated_messages_are_those_of_the_schema(tmp_path):
    protoc = pytest.importorskip("grpc_tools.protoc", reason="needs grpcio-tools, of the test extra")
    out = tmp_path / "schema"
    arguments = ["protoc", f"--proto_path={HERE}", f"--descriptor_set_out={out}", "mlserver.proto"]
    assert protoc.main(arguments) == 0
    (made,) = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file
    committed = descriptor_pb2.FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(committed)
    made.ClearField("source_code_info")
    for file in (made, committed):  # spelled out by one of them, and what each field is called in JSON anyway
        for message in file.message_type:
            for field in message.field:
                field.ClearField("json_name")
    assert made.SerializeToString(deterministic=True) == committed.SerializeToString(deterministic=True)


def test_the_schema_is_the_table_that_was_read_from_the_wire():
    table = (shared("golden/nuke") / "README.md").read_text(encoding="utf-8")
    rows, message = {}, ""
    for line in re.findall(r"^\|(.*)\|$", table.split("### 1.3")[1].split("### 1.4")[0], re.MULTILINE):
        name, number, field, kind, label, *_ = (cell.strip() for cell in line.split("|"))
        message = name or message
        if number.isdigit():
            rows[message, int(number)] = (field, kind.removesuffix(" (32 bit)"), label)
    types = descriptor_pb2.FieldDescriptorProto.Type
    ours = {}
    file = descriptor_pb2.FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(file)
    for one in file.message_type:
        for field in one.field:
            kind = field.type_name.rpartition(".")[2] or types.Name(field.type).removeprefix("TYPE_").lower()
            repeated = field.label == descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED
            label = ("repeated, packed" if field.options.packed else "repeated") if repeated else "optional"
            ours[one.name, field.number] = (field.name, kind, label)
    assert ours == rows and len(rows) > 40


def test_importing_server_and_client_loads_no_engine():
    import subprocess
    import sys

    code = "import sys, i2ilib.serve.server, i2ilib.serve.client, i2ilib.serve.conformance; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "openvino", "matplotlib"} & set(loaded)


# --- captured exchanges --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["half", "blur", "options", "button", "model_error", "unknown_model"])
def test_requests_are_read_and_written_as_the_real_client_writes_them(name):
    sent = captured(f"{name}_request.bin")
    assert wire.announced(sent[:12]) == len(sent) - 12
    request = wire.read_request(sent[12:])
    assert np.array_equal(request.images[0], samples("plate_16x12x3.f32"))
    for image in request.images[1:]:
        assert np.array_equal(image, samples("matte_16x12x3.f32"))
    assert b"".join(wire.request(request.model, request.images)) == sent
    assert request.model == pb.RequestWrapper.FromString(sent[12:]).r2.model


def test_the_request_for_models_is_the_captured_one():
    assert b"".join(wire.request()) == captured("info_request.bin")
    assert wire.read_request(captured("info_request.bin")[12:]).model is None


def test_responses_are_the_captured_ones():
    plate = samples("plate_16x12x3.f32")
    assert b"".join(wire.picture_response(np.float32(0.25) * plate)) == captured("half_response.bin")
    assert b"".join(wire.error_response("the tag asks for a failure")) == captured("model_error_response.bin")
    models = pb.RespondWrapper.FromString(captured("info_response.bin")[12:]).r1.models
    assert b"".join(wire.info_response(models)) == captured("info_response.bin")


@pytest.mark.parametrize("name", ["half", "blur", "options", "button"])
def test_a_picture_is_read_from_a_response(name):
    found, picture = wire.read_response(captured(f"{name}_response.bin")[12:])
    assert found.r2.num_images == 1 and picture.shape == (3, 12, 16)
    assert b"".join(wire.picture_response(picture))[:20] == captured("half_response.bin")[:20]


def test_what_is_no_picture_is_told_apart():
    found, picture = wire.read_response(captured("model_error_response.bin")[12:])
    assert picture is None and found.error.msg == "the tag asks for a failure"
    with pytest.raises(wire.WireError, match="RespondWrapper"):
        wire.read_response(b"\xff" * 9)


def test_samples_are_not_copied():
    sent = bytearray(captured("half_request.bin")[12:])
    image = wire.read_request(sent).images[0]
    place = sent.index(samples("plate_16x12x3.f32")[:, ::-1].tobytes())
    sent[place : place + 4] = np.float32(77).tobytes()
    assert image[0, -1, 0] == 77  # plane 0, the bottom row, the first column
    pieces = wire.picture_response(image)
    assert np.shares_memory(np.frombuffer(pieces[1], "<f4"), image)


def test_a_long_list_has_its_number_last_and_is_harmless_when_cut():
    models = [pb.Model(name=f"model {i}", label="x" * 100) for i in range(40)]
    reply = wire.info_response(models)
    assert len(reply) == 1  # one write
    whole = pb.RespondWrapper.FromString(bytes(reply[0])[12:])
    assert whole.r1.num_models == len(whole.r1.models) == 40
    number = bytes(reply[0])[-2:]
    assert number == b"\x08\x28"


def test_a_text_that_is_no_unicode_or_too_long_still_goes_out():
    found = pb.RespondWrapper.FromString(bytes(wire.error_response("\ud800" + "x" * 10**6)[0])[12:])
    assert found.error.msg.startswith("?xxx") and len(found.error.msg) == 4000


# --- against protobuf, whatever comes ------------------------------------------------------------------


def as_protobuf(data):
    try:
        found = pb.RequestWrapper.FromString(data)
    except DecodeError:
        return None
    return found


_names = st.text(max_size=8)
_model = st.builds(
    lambda name, ints, floats, texts: pb.Model(
        name=name,
        int_options=[pb.IntAttrib(name=n, values=v) for n, v in ints],
        float_options=[pb.FloatAttrib(name=n, values=v) for n, v in floats],
        string_options=[pb.StringAttrib(name=n, values=v) for n, v in texts],
    ),
    _names,
    st.lists(st.tuples(_names, st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3)), max_size=3),
    st.lists(st.tuples(_names, st.lists(st.floats(width=32), max_size=3)), max_size=3),
    st.lists(st.tuples(_names, st.lists(st.text(max_size=5), max_size=3)), max_size=3),
)


@st.composite
def requests(draw):
    """A request and its pictures."""
    model, images = draw(_model), []
    for _ in range(draw(st.integers(0, 3))):
        c, h, w = (draw(st.integers(1, 4)) for _ in range(3))
        images.append(np.frombuffer(draw(st.binary(min_size=4 * c * h * w, max_size=4 * c * h * w)), "<f4"))
        images[-1] = images[-1].reshape(c, h, w)
    return model, images


@settings(max_examples=100, deadline=None)
@given(requests())
def test_requests_survive_the_way_there(request_):
    model, images = request_
    sent = b"".join(wire.request(model, images))
    found = wire.read_request(sent[12:])
    assert found.model.SerializeToString() == model.SerializeToString()
    assert [image.tobytes() for image in found.images] == [image.tobytes() for image in images]
    theirs = pb.RequestWrapper.FromString(sent[12:])
    assert [i.image for i in theirs.r2.images] == [image[:, ::-1].tobytes() for image in images]


@st.composite
def damaged(draw):
    """A good request with bytes changed, left out, put in or cut off."""
    model, images = draw(requests())
    data = bytearray(b"".join(wire.request(model, images))[12:])
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(["change", "leave out", "put in", "cut", "repeat"]))
        if kind == "change" and place < len(data):
            data[place] = draw(st.integers(0, 255))
        elif kind == "leave out":
            del data[place : place + draw(st.integers(1, 9))]
        elif kind == "put in":
            data[place:place] = draw(st.binary(min_size=1, max_size=9))
        elif kind == "cut":
            del data[place:]
        else:
            data += data[place:]
    return bytes(data)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.one_of(damaged(), st.binary(max_size=60)))
def test_malformed_messages_are_refused_where_protobuf_refuses_them(data):
    theirs = as_protobuf(data)
    try:
        ours = wire.read_request(data)
    except wire.WireError:
        if theirs is None or (not theirs.HasField("r1") and not theirs.r2.HasField("model")):
            return
        groups = "wire type" in _refusal(data)
        bad = any(
            min(i.width, i.height, i.channels) < 1 or len(i.image) != 4 * i.width * i.height * i.channels
            for i in theirs.r2.images
        )
        assert bad or groups
        return
    assert theirs is not None
    assert (ours.model is None) == theirs.HasField("r1")
    if ours.model is not None:
        assert ours.model.SerializeToString(deterministic=True) == theirs.r2.model.SerializeToString(deterministic=True)
        assert [image[:, ::-1].tobytes() for image in ours.images] == [image.image for image in theirs.r2.images]


def _refusal(data):
    with pytest.raises(wire.WireError) as caught:
        wire.read_request(data)
    return str(caught.value)


def test_names_and_values_are_limited_before_anything_is_made_of_them():
    many = b"".join(wire.request(pb.Model(name="x" * (wire.ABOUT + 1)), []))[12:]
    assert "beside samples" in _refusal(many)
    flood = b"\x12\x00" * wire.ABOUT  # empty pictures, two bytes each
    assert "beside samples" in _refusal(b"\x1a" + wire._varint(len(flood)) + flood)


@pytest.mark.parametrize("digits", [b"", b"12", b"-00000000001", b"           6", b"00000000006 ", b"+00000000006"])
def test_only_twelve_digits_are_a_header(digits):
    with pytest.raises(wire.WireError, match="12 digits"):
        wire.announced(digits)
    with pytest.raises(wire.WireError, match="at most"):
        wire.header(2**31)


@pytest.mark.parametrize(
    ("image", "told"),
    [
        ({"width": -1}, "at least 1"),
        ({"width": -2, "height": -2}, "at least 1"),
        ({"channels": 0}, "at least 1"),
        ({"image": bytes(44)}, "48 bytes"),
        ({"image": bytes(52)}, "48 bytes"),
        ({"width": 2**31 - 1, "height": 2**31 - 1, "channels": 2**31 - 1}, "got 48 bytes"),
    ],
)
def test_a_picture_has_the_bytes_that_it_says(image, told):
    good = {"width": 2, "height": 2, "channels": 3, "image": bytes(48)}
    inference = pb.RequestInference(model=pb.Model(name="x"), images=[pb.Image(**good | image)])
    assert told in _refusal(pb.RequestWrapper(r2=inference).SerializeToString())


def test_a_request_says_what_it_wants():
    assert "neither" in _refusal(b"")
    assert "no model" in _refusal(pb.RequestWrapper(r2=pb.RequestInference()).SerializeToString())
    with pytest.raises(wire.WireError, match="protobuf can write"):
        wire.pack(_Unwritable(), response=True)


class _Unwritable:
    def SerializeToString(self):
        raise importlib.import_module("google.protobuf.message").EncodeError("too large")


# --- memory for messages ---------------------------------------------------------------------------------


def test_a_block_is_used_again_and_never_while_anybody_looks_at_it():
    blocks = wire.Blocks(kept=5 << 20)
    first = blocks.take(2 << 20)
    first[:] = 7
    view = np.frombuffer(memoryview(first)[4:404], "<f4").reshape(1, 10, 10)[:, ::-1]
    where = first.ctypes.data
    del first
    assert not blocks.kept  # the view still looks at it
    second = blocks.take(2 << 20)
    assert second.ctypes.data != where and view[0, 0, 0] == np.frombuffer(b"\x07" * 4, "<f4")[0]
    del view
    again = blocks.take((2 << 20) - 5)
    assert again.ctypes.data == where and len(again) == (2 << 20) - 5
    del again, second
    held = [blocks.take(3 << 20) for _ in range(3)]
    del held
    assert sum(map(len, blocks.kept)) <= 5 << 20
    assert len(blocks.take(10)) == 10


# --- sockets -----------------------------------------------------------------------------------------


@pytest.fixture
def pair():
    a, b = socket.socketpair()
    with a, b:
        yield a, b


def test_sending_takes_as_many_turns_as_it_needs(pair):
    a, b = pair
    pieces = [bytes(range(256)) * 4000, b"", b"x" * 3, memoryview(bytes(2_000_000))]
    total, got = sum(map(len, pieces)), bytearray()

    def read():
        while len(got) < total:
            got.extend(b.recv(1000))

    reader = threading.Thread(target=read)
    reader.start()
    wire.send(a, pieces, wire.Pace(10))
    reader.join()
    assert got == b"".join(map(bytes, pieces))


def test_who_stops_reading_or_writing_is_left(pair):
    a, b = pair
    with pytest.raises(TimeoutError):
        wire.send(a, [bytes(10**7)], wire.Pace(0.1))
    with pytest.raises(TimeoutError):
        wire.receive(a, memoryview(bytearray(1)), wire.Pace(0.1))
    with pytest.raises(TimeoutError):
        wire.Pace(1, until=0).wait(a)
    b.close()
    with pytest.raises(wire.Left):
        wire.send(a, [b"x"], wire.Pace(1))
    with pytest.raises(wire.Left):
        wire.receive(a, memoryview(bytearray(1)), wire.Pace(1))


def test_memory_is_asked_for_before_bytes_are_written(pair):
    a, b = pair
    asked = []
    b.sendall(bytes(10))
    wire.receive(a, memoryview(bytearray(10)), wire.Pace(1), grow=asked.append, step=4)
    assert asked == [4, 4, 2]


def test_a_pace_counts_the_whole_message():
    pace = wire.Pace.of(1000, stall=0.0, rate=1e9)
    with pytest.raises(TimeoutError):
        pace.wait(socket.socket())
