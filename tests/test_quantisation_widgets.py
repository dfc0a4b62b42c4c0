"""Views of quantisation against the executor and plain arithmetic; widgets driven from Python without a front end."""

import gc
import math
import weakref

import matplotlib
import pytest
import torch
from torch import nn

matplotlib.use("Agg")

from i2ilib import I2IError, metrics, widgets
from i2ilib.quant import Quantised, quantise
from i2ilib.widgets import _base


class Matting(nn.Module):
    """Three layers and a tanh; its matte follows the mean of the picture."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
        self.head = nn.Conv2d(4, 3, 1)

    def forward(self, x):
        return torch.tanh(self.head(self.second(self.first(x))))


@pytest.fixture(scope="module")
def scene():
    """A network, eight calibration batches of growing range, a patch and its truth."""
    generator = torch.Generator().manual_seed(3)
    model = Matting()
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.5)
    batches = [torch.rand(2, 3, 24, 24, generator=generator) * (0.2 + 0.25 * k) - 0.1 * k for k in range(8)]
    x = torch.rand(1, 3, 24, 24, generator=generator) * 2 - 1
    truth = ((model(x).mean(1, keepdim=True) + 1) / 2).detach().clamp(0, 1)
    return model, batches, x, truth


@pytest.fixture
def quantised(scene):
    model, batches, *_ = scene
    return quantise(model, batches)


def alpha(network: Quantised, x: torch.Tensor) -> torch.Tensor:
    return ((network.integer(x).mean(1) + 1) / 2).clamp(0, 1)


# --- position_view ---------------------------------------------------------------------------------


def test_view_is_the_exact_executor(scene, quantised):
    _, _, x, truth = scene
    changes = {"second.1": quantised.fix_positions["second.1"] - 4, "head.weight": 3}
    view = widgets.position_view(quantised, x, truth, changes)
    moved = alpha(quantised.moved(changes), x)
    torch.testing.assert_close(view.matte, moved, rtol=0, atol=1e-6)
    torch.testing.assert_close(view.reference, alpha(quantised, x), rtol=0, atol=1e-6)
    assert torch.equal(view.error, view.matte - truth[0]) and not torch.equal(view.matte, view.reference)
    assert view.iou == metrics.iou(moved, truth[0]) and view.reference_iou == metrics.iou(view.reference, truth[0])
    assert view.mse == pytest.approx(float((moved - truth[0]).double().square().mean()) * 255**2, rel=1e-5)
    assert view.reference_mse < view.mse
    assert (view.tensor, view.kind, view.fix_position) == ("head.weight", "parameter", 3)  # the one named last
    assert view.start == quantised.fix_positions["head.weight"] and view.changes == changes


def test_unmoved_is_the_reference(scene, quantised):
    _, _, x, truth = scene
    view = widgets.position_view(quantised, x, truth[0], {})  # the truth as (1, H, W)
    assert torch.equal(view.matte, view.reference) and view.iou == view.reference_iou and view.tensor == "input"
    codes = torch.floor(x[0].double() * 2.0**view.fix_position + 0.5).clamp(-128, 127)
    expected = ((codes * 2.0**-view.fix_position + 1) / 2).clamp(0, 1)
    torch.testing.assert_close(view.picture, expected.float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "kind"), [("first.1", "activation"), ("second.0.weight", "parameter")])
def test_values_are_unrounded_and_counted(scene, quantised, name, kind):
    model, _, x, truth = scene
    fp = quantised.fix_positions[name] + 2
    view = widgets.position_view(quantised, x, truth, {name: fp})
    with torch.no_grad():
        expected = (model.first(x) if name == "first.1" else model.second[0].weight).flatten()
    torch.testing.assert_close(view.values, expected, rtol=1e-5, atol=1e-6)
    q = view.values.double() * 2.0**fp
    codes = torch.floor(q + 0.5) if kind == "activation" else torch.sign(q) * torch.floor(q.abs() + 0.5)
    assert view.kind == kind
    assert view.saturated_share == pytest.approx(((codes > 127) | (codes < -128)).double().mean().item()) and (
        view.saturated_share > 0
    )
    assert view.zero_share == pytest.approx(((codes == 0) & (q != 0)).double().mean().item())
    error = (codes.clamp(-128, 127) - q) * 2.0**-fp
    assert view.tensor_mse == pytest.approx(error.square().mean().item(), rel=1e-4)


def test_fewer_bits_keep_the_range(scene, quantised):
    _, _, x, truth = scene
    view = widgets.position_view(quantised, x, truth, {"second.1": 1}, bits=5, tensor="first.1")
    positions = {name: fp - 3 for name, fp in quantised.fix_positions.items()} | {"second.1": 1}
    five = Quantised(quantised.folded, positions, quantised.example_shape, bits=5)
    torch.testing.assert_close(view.matte, alpha(five, x), rtol=0, atol=1e-6)
    assert view.bits == 5 and view.start == view.fix_position == quantised.fix_positions["first.1"] - 3


def test_another_mapping_than_trained(scene, quantised):
    _, _, x, truth = scene
    loud = widgets.position_view(quantised, x, truth, {}, q_in=4)
    torch.testing.assert_close(loud.matte, alpha(quantised, x * 4), rtol=0, atol=1e-6)
    assert torch.equal(loud.reference, widgets.position_view(quantised, x, truth, {}).reference)
    beyond = ((x * 4 * 128 >= 127.5) | (x * 4 * 128 < -128.5)).double().mean().item()  # the input ends at [-1, 1]
    assert loud.fix_position == 7 and loud.saturated_share == pytest.approx(beyond) and beyond > 0.5
    faint = widgets.position_view(quantised, x, truth, {}, q_out=8)
    expected = ((quantised.integer(x).mean(1) / 8 + 1) / 2).clamp(0, 1)
    torch.testing.assert_close(faint.matte, expected, rtol=0, atol=1e-6)
    scaled = widgets.position_view(quantised, x * 8, truth, {}, q_in=2, trained_q=(8, 1))
    torch.testing.assert_close(scaled.matte, alpha(quantised, x * 2), rtol=0, atol=1e-6)


def test_positions_beyond_the_shifters_are_named(scene, quantised):
    _, _, x, truth = scene
    assert widgets.position_view(quantised, x, truth, {}).beyond == ()
    high = widgets.position_view(quantised, x, truth, {"first.1": quantised.fix_positions["first.1"] + 12})
    assert high.beyond == ("first.1",)


def test_results_are_kept_and_follow_their_network(scene, quantised, monkeypatch):
    _, _, x, truth = scene
    x = x.clone()
    before = widgets.position_view(quantised, x, truth, {"first.1": 3})
    monkeypatch.setattr(Quantised, "integer", lambda *_: pytest.fail("computed again"))
    again = widgets.position_view(quantised, x, truth, {"first.1": 3}, tensor="second.1", q_out=2)
    assert torch.equal(again.reference, before.reference)
    monkeypatch.undo()
    x.mul_(0.5)  # in place: another patch
    assert not torch.equal(widgets.position_view(quantised, x, truth, {"first.1": 3}).matte, before.matte)
    other = quantise(scene[0], scene[1])
    widgets.position_view(other, x, truth, {})
    alive = weakref.ref(other)
    del other
    gc.collect()
    assert alive() is None


def test_the_oldest_results_go(monkeypatch):
    class Owner:
        pass

    monkeypatch.setattr(_base, "KEPT", 2)
    owner, made = Owner(), []
    for key in ("a", "b", "a", "c", "a"):
        assert _base.kept(owner, key, lambda key=key: made.append(key) or key) == key
    assert made == ["a", "b", "c", "a"]


# --- position_widget -------------------------------------------------------------------------------


def test_every_control_of_the_position_widget(scene, quantised):
    _, _, x, truth = scene
    widget = widgets.position_widget(quantised, x, truth)
    first = bytes(widget.picture.value)
    assert first.startswith(b"\x89PNG") and widget.view.iou == widget.view.reference_iou
    assert [name for _, name in widget.tensor.options][:4] == ["input", "first.0.weight", "first.0.bias", "first.1"]
    assert {name for _, name in widget.tensor.options} == set(quantised.fix_positions)
    widget.tensor.value = "second.1"
    start = quantised.fix_positions["second.1"]
    slider = widget.fix_position
    assert (slider.min, slider.value, slider.max) == (start - 4, start, start + 4) and widget.changes == {}
    slider.value = start - 4
    coarse = widgets.position_view(quantised, x, truth, {"second.1": start - 4})
    assert widget.changes == {"second.1": start - 4} and torch.equal(widget.view.matte, coarse.matte)
    assert bytes(widget.picture.value) != first and widget.view.mse > widget.view.reference_mse
    widget.tensor.value = "input"  # the move stays
    assert widget.view.tensor == "input" and torch.equal(widget.view.matte, coarse.matte)
    widget.bits.value = 6
    fewer = widgets.position_view(quantised, x, truth, {"second.1": start - 6}, bits=6)
    assert widget.changes == {"second.1": start - 6} and torch.equal(widget.view.matte, fewer.matte)
    assert widget.fix_position.value == quantised.fix_positions["input"] - 2
    widget.q_in.value, widget.q_out.value = 2, 4
    mapped = widgets.position_view(quantised, x, truth, {"second.1": start - 6}, bits=6, q_in=2, q_out=4)
    assert torch.equal(widget.view.matte, mapped.matte)
    widget.reset.click()
    assert widget.changes == {} and (widget.q_in.value, widget.q_out.value, widget.bits.value) == (1, 1, 8)
    assert widget.view.tensor == "input" and widget.fix_position.value == quantised.fix_positions["input"]
    assert torch.equal(widget.view.matte, widget.view.reference)
    assert not any(c.continuous_update for c in (slider, widget.q_in, widget.q_out, widget.bits))


def test_a_position_moved_back_is_no_change(scene, quantised):
    _, _, x, truth = scene
    widget = widgets.position_widget(quantised, x * 4, truth, trained_q=(4, 1))
    assert widget.q_in.value == 4
    start = widget.fix_position.value
    widget.fix_position.value = start + 1
    assert widget.changes == {"input": start + 1}
    widget.fix_position.value = start
    assert widget.changes == {} and torch.equal(widget.view.matte, widget.view.reference)


def test_what_was_moved_is_listed_and_undone_one_by_one(scene, quantised):
    _, _, x, truth = scene
    widget = widgets.position_widget(quantised, x, truth)
    start = quantised.fix_positions
    for name, by in (("second.1", -2), ("head.weight", 1)):
        widget.tensor.value = name
        widget.fix_position.value += by
    labels = [button.description for button in widget.moved.children]
    assert labels == [f"second.1: {start['second.1']} → {start['second.1'] - 2}",
                      f"head.weight: {start['head.weight']} → {start['head.weight'] + 1}"]  # fmt: skip
    widget.moved.children[0].click()
    assert widget.changes == {"head.weight": start["head.weight"] + 1} and len(widget.moved.children) == 1
    alone = widgets.position_view(quantised, x, truth, widget.changes)
    assert torch.equal(widget.view.matte, alone.matte)
    widget.moved.children[0].click()
    assert widget.changes == {} and not widget.moved.children and widget.fix_position.value == start["head.weight"]


def test_a_setting_can_be_pinned_and_compared_with(scene, quantised):
    _, _, x, truth = scene
    widget = widgets.position_widget(quantised, x, truth)
    widget.tensor.value = "second.1"
    widget.fix_position.value -= 3
    pinned, before = widget.view, bytes(widget.picture.value)
    widget.pin.value = True
    assert widget.pinned is pinned and bytes(widget.picture.value) != before
    widget.fix_position.value += 1
    assert widget.pinned is pinned and not torch.equal(widget.view.matte, pinned.matte)
    widget.pin.value = False
    assert widget.pinned is None


@pytest.mark.parametrize("q", [2, 8])
def test_the_inputs_position_follows_on_request(scene, quantised, q):
    _, _, x, truth = scene
    widget = widgets.position_widget(quantised, x, truth)
    start = quantised.fix_positions["input"]
    widget.q_in.value = q
    assert "saturates" in widget.hint.value and widget.changes == {}
    widget.keep.value = True
    moved = start - int(math.log2(q))
    assert widget.changes == {"input": moved} and widget.fix_position.value == moved
    assert "saturates" not in widget.hint.value and f"{q} times as large" in widget.hint.value
    codes = [((x * k).double() * 2.0**p + 0.5).floor().clamp(-128, 127) for k, p in ((1, start), (q, moved))]
    assert torch.equal(*codes)  # only the product counts
    expected = widgets.position_view(quantised, x, truth, {"input": moved}, q_in=q)
    assert torch.equal(widget.view.matte, expected.matte)
    widget.fix_position.value = moved - 1
    assert widget.changes == {"input": moved - 1}
    widget.moved.children[0].click()
    assert widget.changes == {} and widget.keep.value is False
    widget.q_out.value = 4
    assert "within 0.125 of one half" in widget.hint.value
    widget.reset.click()
    assert widget.hint.value == "" and widget.changes == {}


# --- calibration -----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"bits": 5}, {"equalise": True}, {"correct_bias": True}])
def test_calibration_view_is_quantise(scene, options):
    model, batches, x, truth = scene
    view = widgets.calibration_view(model, batches, x, truth, count=1, **options)
    one, all_ = quantise(model, batches[:1], **options), quantise(model, batches, **options)
    assert view.fix_positions == one.fix_positions
    differing = {n: (fp, all_.fix_positions[n]) for n, fp in one.fix_positions.items() if fp != all_.fix_positions[n]}
    assert view.changed == differing and differing
    torch.testing.assert_close(view.matte, alpha(one, x), rtol=0, atol=1e-6)
    torch.testing.assert_close(view.reference, alpha(all_, x), rtol=0, atol=1e-6)
    assert view.iou == metrics.iou(view.matte, truth[0]) and view.reference_iou == metrics.iou(view.reference, truth[0])
    assert view.mse == metrics.mse(view.matte, truth[0], scale=255)
    assert view.reference_mse == metrics.mse(view.reference, truth[0], scale=255)
    assert view.float_iou == 1 and view.float_mse == pytest.approx(0, abs=1e-6)  # the truth is its own matte
    assert (view.count, view.total, view.bits) == (1, 8, options.get("bits", 8))


def test_all_batches_are_the_reference(scene):
    model, batches, x, truth = scene
    view = widgets.calibration_view(model, batches, x, truth, count=8)
    assert view.changed == {} and torch.equal(view.matte, view.reference)


def test_calibrations_are_kept_until_the_weights_change(scene, monkeypatch):
    _, batches, x, truth = scene
    model = Matting()
    before = widgets.calibration_view(model, batches, x, truth, count=2)
    monkeypatch.setattr("i2ilib.widgets.quantisation.quantise", lambda *_, **__: pytest.fail("computed again"))
    assert widgets.calibration_view(model, batches, x, truth, count=2).fix_positions == before.fix_positions
    assert widgets.calibration_view(model, batches, x, truth, count=8).changed == {}
    monkeypatch.undo()
    with torch.no_grad():
        model.head.weight.mul_(16)
    after = widgets.calibration_view(model, batches, x, truth, count=2)
    assert after.fix_positions["head.weight"] == before.fix_positions["head.weight"] - 4


def test_slider_reaches_the_browser_in_one_message(scene, quantised, monkeypatch):
    """Sent one by one, an old value meets new ends there, is clipped, and the slider shows what no picture does."""
    _, _, x, truth = scene
    widget = widgets.position_widget(quantised, x, truth)
    sent = []

    def note(key: str | set[str]) -> None:
        sent.append({key} if isinstance(key, str) else set(key))

    monkeypatch.setattr(widget.fix_position, "send_state", note)
    widget.tensor.value = "head"
    assert {"min", "max", "value"} in sent, sent


def test_every_control_of_the_calibration_widget(scene):
    model, batches, x, truth = scene
    widget = widgets.calibration_widget(model, batches, x, truth)
    assert widget.view.changed == {} and bytes(widget.picture.value).startswith(b"\x89PNG")
    assert (widget.count.min, widget.count.max, widget.count.value) == (1, 8, 8)
    seen = {bytes(widget.picture.value)}
    settings = {"count": 1, "bits": 4, "equalise": True, "correct_bias": True}
    for name, value in settings.items():
        getattr(widget, name).value = value
        assert getattr(widget.view, name) == value
        seen.add(bytes(widget.picture.value))
    assert len(seen) == 5
    view = widgets.calibration_view(model, batches, x, truth, **settings)
    assert widget.view.fix_positions == view.fix_positions and torch.equal(widget.view.matte, view.matte)
    assert not widget.count.continuous_update and not widget.bits.continuous_update


# --- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"changes": {"nowhere": 3}}, "tensor of this network.*nowhere"),
        ({"tensor": "nowhere"}, "tensor of this network.*nowhere"),
        ({"changes": {"input": 2.5}}, "whole numbers"),
        ({"bits": 1}, "2 to 8"),
        ({"bits": 9}, "2 to 8"),
        ({"q_in": 3}, "q_in: expected a power of two"),
        ({"q_out": 256}, "q_out: expected a power of two"),
        ({"trained_q": (5, 1)}, "power of two"),
        ({"x": torch.zeros(2, 3, 24, 24)}, "one floating-point patch"),
        ({"x": torch.zeros(1, 3, 24, 24, dtype=torch.uint8)}, "one floating-point patch"),
        ({"x": torch.zeros(1, 3, 12, 24), "truth": torch.zeros(1, 1, 12, 24)}, r"\(1, 3, 24, 24\)"),
        ({"truth": torch.zeros(1, 3, 24, 24)}, "truth: expected"),
        ({"truth": torch.zeros(1, 1, 24, 12)}, "truth: expected"),
    ],
)
def test_position_view_refuses(scene, quantised, change, message):
    _, _, x, truth = scene
    arguments = {"x": x, "truth": truth, "changes": {}} | change
    with pytest.raises(I2IError, match=message):
        widgets.position_view(quantised, **arguments)


@pytest.mark.parametrize("count", [0, 9])
def test_calibration_view_refuses(scene, count):
    with pytest.raises(I2IError, match="1 to the 8 batches"):
        widgets.calibration_view(*scene, count=count)


def test_calibration_widget_needs_a_batch(scene):
    model, _, x, truth = scene
    with pytest.raises(I2IError, match="batches: expected at least one"):
        widgets.calibration_widget(model, [], x, truth)
