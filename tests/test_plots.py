"""Figures hold the data they were given, and wrong data are refused."""

import math
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
import torch

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from PIL import Image

from i2ilib import I2IError, plots, widgets
from i2ilib.deploy.staircase import Step
from i2ilib.plots import quantisation as qp
from i2ilib.plots.restoration import restoration
from i2ilib.quant import quantise
from i2ilib.quant.correct import Pair


@pytest.fixture(autouse=True)
def house_style():
    plots.style()


def test_import_of_the_package_stays_light():
    heavy = "{'torch', 'matplotlib', 'seaborn', 'ipywidgets', 'skimage'}"
    code = f"import sys, i2ilib; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]" and done.stderr == ""


def test_style_is_applied():
    assert plt.rcParams["figure.dpi"] == 110 and plt.rcParams["figure.constrained_layout.use"]
    colours = [matplotlib.colors.to_hex(c["color"]) for c in plt.rcParams["axes.prop_cycle"]]
    assert colours == list(plots.PALETTE)


def test_to_image():
    x = torch.tensor([-1.0, 0.25, 2.0]).view(3, 1, 1).expand(3, 4, 5)
    image = plots.to_image(x[None])
    assert image.shape == (4, 5, 3) and image.dtype == np.float32
    assert image[0, 0].tolist() == [0.0, 0.25, 1.0]
    assert plots.to_image(x[:1]).shape == plots.to_image(x[0]).shape == (4, 5)
    assert plots.to_image(x.double().requires_grad_()).dtype == np.float32


def test_matte_panels_show_the_signed_error():
    source, truth = torch.rand(2, 3, 12, 16), torch.zeros(2, 1, 12, 16)
    matte = truth + 0.25
    figure = plots.matte_panels(source, matte, truth, titles=("a", "b", "c", "d"))
    panels = [ax for ax in figure.axes if ax.images]
    assert [ax.get_title(loc="left") for ax in panels[:4]] == ["a", "b", "c", "d"]
    np.testing.assert_allclose(panels[3].images[0].get_array(), 0.25)
    assert panels[3].images[0].get_clim() == (-0.25, 0.25)
    np.testing.assert_allclose(panels[4].images[0].get_array(), plots.to_image(source[1]))
    assert figure.axes[-1].get_ylabel() == "alpha"
    limited = plots.matte_panels(source[0], matte[0], truth[0], limit=0.5)
    assert next(ax for ax in limited.axes[3:] if ax.images).images[0].get_clim() == (-0.5, 0.5)


def test_fixed_point_figure_shows_the_view():
    image = torch.linspace(0, 1, 48).expand(3, 24, 48).contiguous()
    view = widgets.fixed_point_view(image, 4, 4)
    figure = plots.fixed_point_figure(view)
    whole, part, miss = [ax for ax in figure.axes if ax.images][:3]
    np.testing.assert_allclose(whole.images[0].get_array(), plots.to_image(view.result))
    assert part.images[0].get_array().shape == (*view.zoom[2:], 3)
    np.testing.assert_allclose(miss.images[0].get_array(), view.error_codes.amax(0))
    bars = [ax for ax in figure.axes if ax.containers]
    assert [len(ax.containers) for ax in bars] == [1, 1]
    assert all(sum(bar.get_height() for bar in ax.containers[0]) == pytest.approx(100) for ax in bars)
    grey = widgets.fixed_point_view(image, 1, 64, fix_position=6)
    clipped = plots.fixed_point_figure(grey)
    entered, left = [ax for ax in clipped.axes if ax.containers]
    assert len(entered.containers) == 1 and len(left.containers) == 2
    assert [ax.get_xlabel() for ax in (entered, left)] == ["INT8 code", "INT8 code (red: saturated)"]
    assert f"{100 * grey.stats['saturated_share_out']:.2f} % saturated" in left.get_title(loc="left")
    scales = [next(ax for ax in f.axes if ax.images and ax.images[0].norm.vmax == 255) for f in (figure, clipped)]
    assert len({(ax.images[0].norm.vmin, ax.images[0].norm.vmax) for ax in scales}) == 1  # one scale for every view


def test_save_is_whole(tmp_path):
    figure, _ = plt.subplots()
    plots.save(figure, tmp_path / "new" / "figure.png")
    assert Image.open(tmp_path / "new" / "figure.png").size[0] > 100
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["figure.png"]


@pytest.mark.parametrize(
    "bad",
    [torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4), torch.zeros(4), torch.zeros(3, 4, 4, dtype=torch.uint8)],
)
def test_to_image_refuses(bad):
    with pytest.raises(I2IError, match="one or three channels"):
        plots.to_image(bad)


@pytest.mark.parametrize("shape", [(1, 1, 5, 4), (1, 2, 4, 4), (2, 1, 4, 4)])
def test_matte_panels_refuse(shape):
    with pytest.raises(I2IError, match="same pixels"):
        plots.matte_panels(torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4, 4), torch.zeros(shape))


STEPS = {"l1": [1.0, 0.5, 0.25, 0.2], "discriminator": [0.7, 0.6, 0.5, 0.4], "adversarial": [0.7, 0.9, 1.1, 1.3]}
EPOCHS = [{"iou": 0.5, "mse": 30.0}, {"iou": 0.75, "mse": 10.0}, {"iou": 0.7, "mse": 12.0}]


def test_training_shows_losses_and_the_best_epoch():
    figure = plots.training(STEPS, EPOCHS)
    losses, game, scores = figure.axes
    for line in losses.lines:  # four steps: the running mean of one value is the value
        assert line.get_xdata().tolist() == [1, 2, 3, 4] and line.get_ydata().tolist() == STEPS["l1"]
    assert losses.get_yscale() == "log" and "step" in losses.get_xlabel()
    named = {text.get_text() for text in game.get_legend().get_texts()}
    assert named == {"adversarial", "discriminator", "ln 2: undecided"} and not game.texts
    figure.canvas.draw()
    legend, top = game.get_legend().get_window_extent(), max(STEPS["adversarial"] + STEPS["discriminator"])
    assert legend.x1 < game.get_window_extent().x1 + 1
    assert legend.y0 > game.transData.transform((1, top))[1]  # above the curves
    drawn = [list(line.get_ydata()) for line in game.lines]
    assert STEPS["discriminator"] in drawn and STEPS["adversarial"] in drawn
    assert [np.log(2)] * 2 in [pytest.approx(values) for values in drawn if len(values) == 2]
    curve, ring = scores.lines
    assert curve.get_xdata().tolist() == [1, 2, 3] and list(curve.get_ydata()) == [30, 10, 12]
    assert (list(np.ravel(ring.get_xdata())), list(np.ravel(ring.get_ydata()))) == ([2], [10])
    (label,) = scores.get_legend().get_texts()
    assert "epoch 2" in label.get_text() and "0.750" in label.get_text()


def test_training_smooths_a_long_series():
    values = [1.0, 3.0] * 400  # the mean over any even window is 2
    losses = plots.training({"l1": values}, []).axes[0]
    raw, mean = (np.asarray(line.get_ydata()) for line in losses.lines)
    assert raw.tolist() == values
    np.testing.assert_allclose(mean, 2.0)
    x = losses.lines[1].get_xdata()
    assert x[0] > 1 and x[-1] < 800 and (x[0] + x[-1]) / 2 == pytest.approx(400.5)  # centred on what it averages


def test_training_without_a_judge_or_an_epoch():
    figure = plots.training({"l1": STEPS["l1"]}, [])
    assert [len(ax.lines) for ax in figure.axes] == [2, 0, 0]
    figure.canvas.draw()


@pytest.mark.parametrize("n", [1, 3])
def test_training_shows_samples(n):
    samples = torch.rand(n, 5, 6, 8)
    figure = plots.training(STEPS, EPOCHS, samples)
    panels = [ax for ax in figure.axes if ax.images]
    assert [ax.get_title(loc="left") for ax in panels] == ["source", "made", "true"] * n
    for k, sample in enumerate(samples):
        for ax, part in zip(panels[3 * k :], (sample[:3], sample[3:4], sample[4:]), strict=False):
            np.testing.assert_allclose(ax.images[0].get_array(), plots.to_image(part))
            assert ax.images[0].get_clim() == (0, 1)
    figure.canvas.draw()


RESTORED = {
    "vif_limited": [0.6, 0.5, 0.4, 0.3],
    "1 - ssim": [0.3, 0.2, 0.2, 0.1],
    "wait": [0.0] * 4,
    "seconds": [1.0] * 4,
}


def test_restoration_shows_losses_by_name_and_the_best_epoch():
    steps = RESTORED | {"discriminator": STEPS["discriminator"], "adversarial": STEPS["adversarial"]}
    figure = restoration(steps, [{"ssim": 0.9, "vmaf_neg": v} for v in (70.0, 75.5, 74.0)], torch.rand(2, 9, 6, 8))
    losses, game, scores, *panels = figure.axes
    named = {text.get_text() for text in losses.get_legend().get_texts()}
    assert named == {"vif_limited", "1 - ssim"}
    assert {tuple(line.get_ydata()) for line in losses.lines} == {tuple(RESTORED[name]) for name in named}
    assert {text.get_text() for text in game.get_legend().get_texts()} >= {"adversarial", "discriminator"}
    assert list(scores.lines[0].get_ydata()) == [70, 75.5, 74] and scores.get_ylabel() == "VMAF NEG"
    assert scores.get_legend().get_texts()[0].get_text() == "best: epoch 2, 75.5"
    assert [ax.get_title(loc="left") for ax in panels] == ["bicubic", "made", "true"] * 2
    figure.canvas.draw()


def test_restoration_without_a_judge_or_an_epoch():
    figure = restoration(RESTORED, [])
    assert [len(ax.lines) for ax in figure.axes] == [4, 0, 0]
    figure.canvas.draw()


# --- integers ------------------------------------------------------------------------------------


class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(5)
    model, batch = Small(), torch.randn(2, 3, 8, 8)
    return model, batch, quantise(model, [batch])


def bars(ax):
    """(edges, heights, colour) of the stairs in an axes."""
    parts = [p for p in ax.patches if isinstance(p, matplotlib.patches.StepPatch)]
    return [(p.get_data().edges, p.get_data().values, matplotlib.colors.to_hex(p.get_facecolor())) for p in parts]


def texts(artists):
    return [text.get_text() for text in artists]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("fp", [-3, 2, 5, 9])
def test_tensor_histogram_counts_what_saturates(fp, bits):
    values = torch.randn(2, 500, generator=torch.Generator().manual_seed(0)) * 3
    figure = qp.tensor_histogram(values, fp, bits=bits, title="a tensor")
    (ax,) = figure.axes
    x, step, half = values.flatten().double().numpy(), 2.0**-fp, 2 ** (bits - 1)
    codes = np.floor(x / step + 0.5)
    saturated = (codes < -half) | (codes > half - 1)
    parts = bars(ax)
    assert sum(v.sum() for _, v, _ in parts) == pytest.approx(100)
    assert sum(v.sum() for _, v, c in parts if c == qp.RED) == pytest.approx(100 * saturated.mean())
    ((edges, _, _),) = [part for part in parts if part[2] == qp.BLUE]
    np.testing.assert_allclose((edges[0], edges[-1]), ((-half - 0.5) * step, (half - 0.5) * step))
    for edges, heights, _ in parts:
        np.testing.assert_allclose(heights, np.histogram(x, edges)[0] / 10)
    labels = texts(ax.get_legend().get_texts())
    lost = ((codes == 0) & (x != 0)).mean()
    assert labels[1] == f"saturated: {qp._percent(saturated.mean())}"
    assert labels[2] == f"rounded to zero: {qp._percent(lost)}" and labels[3] == f"the {2**bits} integers"
    assert ax.get_title(loc="left") == "a tensor" and str(-fp) in ax.get_xlabel() and "%" in ax.get_ylabel()
    assert ax.get_xlim()[0] <= x.min() and ax.get_xlim()[1] >= x.max()
    figure.canvas.draw()


def test_grid_shares_round_by_kind():
    values = torch.tensor([-0.5, 0.5, 0.49, 0.0, 127.5, 127.4, -128.5, -129.0])  # at position 0
    assert qp.grid_shares(values, 0) == (2 / 8, 2 / 8)  # up: 127.5 and -129 leave; -0.5 and 0.49 become 0
    assert qp.grid_shares(values, 0, kind="parameter") == (3 / 8, 1 / 8)  # away: -128.5 leaves as well; 0.49 becomes 0


@pytest.mark.parametrize(("share", "text"), [(0, "0"), (0.00034, "0.034 %"), (0.12, "12 %"), (1, "100 %")])
def test_shares_are_told(share, text):
    assert qp._percent(share) == text


def test_tensor_histogram_takes_an_axes_and_one_value():
    figure, axes = plt.subplots(1, 2)
    assert qp.tensor_histogram(torch.zeros(1), 7, ax=axes[1]) is figure
    assert not axes[0].patches and [v.sum() for _, v, _ in bars(axes[1])] == [100]
    figure.canvas.draw()


@pytest.mark.parametrize(("bad", "got"), [(torch.zeros(0), "none"), (torch.tensor([1.0, torch.nan]), "NaN")])
def test_tensor_histogram_refuses(bad, got):
    with pytest.raises(I2IError, match=f"finite values.*{got}"):
        qp.tensor_histogram(bad, 3)


def test_float_values_are_those_of_the_network(small):
    model, batch, quantised = small
    with torch.no_grad():
        hidden = torch.relu(model.first(batch))
        expected = {"input": batch, "first.weight": model.first.weight, "second": model.second(hidden)}
    found = qp.float_values(quantised, batch)
    assert set(found) == set(quantised.fix_positions)
    (relu,) = [
        name for name in found if name not in ("input", "second") and name.split(".")[-1] not in ("weight", "bias")
    ]
    for name, value in (expected | {relu: hidden}).items():
        torch.testing.assert_close(found[name], value.detach(), rtol=1e-5, atol=1e-6)
    assert list(qp.float_values(quantised, batch, "first.bias")) == ["first.bias"]
    with pytest.raises(I2IError, match=r"tensor of this network.*'third'"):
        qp.float_values(quantised, batch, "input", "third")


def test_small_multiples_of_tensors(small):
    _, batch, quantised = small
    names = ["second", "first.weight", "input", "first.bias"]
    figure = qp.weight_and_activation_histograms(quantised, batch, names)
    panels = [ax for ax in figure.axes if ax.get_visible()]
    assert [ax.get_title(loc="left") for ax in panels] == names and len(figure.axes) == 6
    values = qp.float_values(quantised, batch, *names)
    for ax, name in zip(panels, names, strict=True):
        fp = quantised.fix_positions[name]
        assert sum(v.sum() for _, v, _ in bars(ax)) == pytest.approx(100)
        ((edges, heights, _),) = [part for part in bars(ax) if part[2] == qp.BLUE]
        assert edges[-1] == pytest.approx(127.5 * 2.0**-fp)
        counts = np.histogram(values[name].double().numpy(), edges)[0]
        np.testing.assert_allclose(heights, 100 * counts / values[name].numel())
        assert ax.texts[0].get_text().startswith(f"position {fp}\n")
    figure.canvas.draw()
    with pytest.raises(I2IError, match="at least one tensor"):
        qp.weight_and_activation_histograms(quantised, batch, [])


STAIRS = [
    Step("float", "float", 0.0, 0, 100),
    Step("folded", "float", 1e-4, 0, 100),
    Step("fake", "folded", 2.5, 40, 100),
    Step("integers", "fake", 0.0, 0, 100),
    Step("engine", "integers", 1.0, 5, 100),
    Step("card", "integers", reason="no card in this machine"),
]


def test_staircase_goes_down_and_says_how_far():
    figure = qp.staircase_figure(STAIRS)
    (ax,) = figure.axes
    treads = [bar for bar in ax.patches if isinstance(bar, matplotlib.patches.Rectangle)]
    heights = [bar.get_height() for bar in treads]
    assert len(treads) == 6 and np.diff(heights) == pytest.approx([-1, -1, -1, -1, 0])
    assert [bool(bar.get_hatch()) for bar in treads] == [False] * 5 + [True]
    colours = [matplotlib.colors.to_hex(bar.get_facecolor()) for bar in treads[1:5]]
    assert colours == [qp.BLUE, qp.RED, qp.GREEN, qp.AMBER]
    told = texts(ax.texts)
    assert told[1:] == [
        "max < 0.01 LSB\n0 differ",
        "max 2.5 LSB\n40 % differ",
        "equal to\nfake",
        "max 1 LSB\n5 % differ",
        "not run\nhere",
    ]
    assert [label.get_text() for label in ax.get_xticklabels()] == [step.name for step in STAIRS]
    assert ax.get_xlabel() == "card: no card in this machine"
    figure.canvas.draw()
    assert qp.staircase_figure(STAIRS[:3]).axes[0].get_xlabel() == ""
    with pytest.raises(I2IError, match="steps: expected at least one"):
        qp.staircase_figure([])


def test_sensitivity_bars_go_from_float_to_each_layer():
    scores = {"input": 0.9, "a": 0.5, "b": 0.7, "c": 0.88, "d": 0.9}
    (ax,) = qp.sensitivity_figure(scores, 0.9, metric="IoU", reference=0.4).axes
    ends = [bar.get_x() + bar.get_width() for bar in ax.containers[0]]
    assert ends == pytest.approx(list(scores.values())) and {bar.get_x() for bar in ax.containers[0]} == {0.9}
    assert texts(ax.get_yticklabels()) == list(scores) and ax.yaxis_inverted() and "IoU" in ax.get_xlabel()
    red = [matplotlib.colors.to_hex(bar.get_facecolor()) == qp.RED for bar in ax.containers[0]]
    assert red == [False, True, True, True, False]  # the three that cost most
    assert texts(ax.get_legend().get_texts()) == ["float: 0.9", "all layers in integers: 0.4"]
    with pytest.raises(I2IError, match="at least one layer"):
        qp.sensitivity_figure({}, 1.0)


def test_bits_lines():
    means = {"PTQ": {8: 0.9, 4: 0.3, 6: 0.8}, "QAT": {4: 0.7, 6: 0.85}}
    figure = qp.bits_figure(means, {"PTQ": {4: 0.1, 6: 0.05}}, metric="IoU", baseline=0.95)
    (ax,) = figure.axes
    lines = {c.get_label(): c for c in ax.containers}
    assert list(lines) == ["PTQ", "QAT"]
    ptq = lines["PTQ"].lines
    np.testing.assert_allclose(np.asarray(ptq[0].get_ydata(), float), [0.3, 0.8, 0.9])
    np.testing.assert_allclose(np.asarray(ptq[0].get_xdata(), float), [4, 6, 8], atol=0.1)
    (segments,) = ptq[2]
    np.testing.assert_allclose([np.ptp(s[:, 1]) for s in segments.get_segments()], [0.2, 0.1, 0], atol=1e-12)
    assert not lines["QAT"].has_yerr
    assert [list(line.get_ydata()) for line in ax.lines if line.get_label() == "float32"] == [[0.95, 0.95]]
    assert ax.get_ylabel() == "IoU" and "bits" in ax.get_xlabel()
    with pytest.raises(I2IError, match="at least one arm"):
        qp.bits_figure({})


def test_equalisation_shows_both_ranges():
    first = torch.tensor([8.0, 0.125, 2.0])
    pair = Pair("e1", "e2", torch.stack([first, 2 / first]), scales=torch.sqrt(first.square() / 2))
    out, into = qp.equalisation_figure(pair).axes
    shared = [math.sqrt(2)] * 3
    for ax, old in ((out, [0.125, 2.0, 8.0]), (into, [16.0, 1.0, 0.25])):  # sorted by the first's range
        lines = {line.get_label(): line.get_ydata() for line in ax.lines}
        np.testing.assert_allclose(lines["before"], old)
        np.testing.assert_allclose(lines["after"], shared, rtol=1e-6)
        assert ax.get_yscale() == "log"
    # out: the step that holds 8 is 1/8 (127.5 / 8 < 16), so 2 is 16 steps; all at 1.414: the step is 1/64, 91 steps
    assert out.get_title(loc="left") == "e1, output channels\nmiddle channel: ±16 → ±91 integers"
    # in: 16 needs 1/4, so 1 is 4 steps
    assert into.get_title(loc="left") == "e2, input channels\nmiddle channel: ±4 → ±91 integers"
    assert qp._integers(np.zeros(3), 8) == 0


def test_qat_shows_loss_walk_and_positions():
    walk = {"a": [0.5, 0.9, 1.1, 1.2], "b": [-2.5, -3.2, -3.1, -2.9], "c": [3.5, 3.5, 3.5, 3.5]}
    figure = qp.qat_figure([4.0, 3.0, 2.0, 1.0], walk, frozen_from=2, highlight=2)
    loss, walks, count = figure.axes
    assert loss.lines[0].get_ydata().tolist() == [4, 3, 2, 1] and loss.get_yscale() == "log"
    paths = {line.get_label(): line.get_ydata() for line in walks.lines if len(line.get_xdata()) == 4}
    np.testing.assert_allclose(paths["a"], np.array(walk["a"]) - 1)
    np.testing.assert_allclose(paths["b"], np.array(walk["b"]) + 2)
    assert len(paths) == 2 and set(texts(figure.legends[0].get_texts())) == {"all", "middle half", "a", "b"}
    everything, middle = (band.get_datalim(walks.transData).intervaly for band in walks.collections)
    assert everything.tolist() == [-1.2, 0.2] or np.allclose(everything, [-1.2, 0.2])
    assert everything[0] < middle[0] and middle[1] < everything[1]
    levels = [line.get_ydata()[0] for line in walks.lines if len(line.get_xdata()) == 2]
    assert levels == [-2, -1, 0, 1]
    numbers = {line.get_label(): line.get_ydata().tolist() for line in count.lines}
    assert numbers == {"finer": [0, 1, 1, 0], "coarser": [0, 0, 1, 1]}
    spans = [patch.get_x() for ax in figure.axes for patch in ax.patches]
    assert spans == [2, 2, 2]
    assert len(qp.qat_figure([1.0, 0.5]).axes) == 1
    with pytest.raises(I2IError, match="at least one step"):
        qp.qat_figure([])
    with pytest.raises(I2IError, match="thresholds: expected 3 values a tensor, got 4"):
        qp.qat_figure([1.0, 0.5, 0.2], walk)


@pytest.fixture(scope="module")
def matting_scene():
    torch.manual_seed(6)
    model = torch.nn.Sequential(Small(), torch.nn.Tanh())
    batches = [torch.randn(2, 3, 16, 16) * (1 + k) for k in range(3)]
    return model, batches, torch.rand(1, 3, 16, 16), torch.rand(1, 1, 16, 16)


def test_position_figure_shows_the_view(matting_scene):
    model, batches, x, truth = matting_scene
    view = widgets.position_view(quantise(model, batches), x, truth, {"0.second": 14, "0.first.weight": 4})
    figure = qp.position_figure(view)
    picture, before, now, moved, error = [ax for ax in figure.axes if ax.images][:5]
    np.testing.assert_allclose(moved.images[0].get_array(), (view.matte - view.reference)[0])
    np.testing.assert_allclose(picture.images[0].get_array(), plots.to_image(view.picture))
    np.testing.assert_allclose(before.images[0].get_array(), view.reference[0])
    np.testing.assert_allclose(now.images[0].get_array(), view.matte[0])
    np.testing.assert_allclose(error.images[0].get_array(), view.error[0])
    for ax, iou, mse in ((before, view.reference_iou, view.reference_mse), (now, view.iou, view.mse)):
        assert f"IoU {iou:.4f}\nMSE {mse:.4g}" in ax.get_title(loc="left")
    other = widgets.position_view(quantise(model, batches), x, truth, {"0.second": 3})
    beside = [ax for ax in qp.position_figure(view, other).axes if ax.images]
    assert beside[1].get_title(loc="left") == f"pinned\nIoU {other.iou:.4f}\nMSE {other.mse:.4g}"
    np.testing.assert_allclose(beside[3].images[0].get_array(), (view.matte - other.matte)[0])
    assert error.images[0].get_clim() == (-0.5, 0.5) and any(ax.get_ylabel() == "alpha" for ax in figure.axes)
    histogram = next(ax for ax in figure.axes if bars(ax))
    title = histogram.get_title(loc="left")
    assert title.startswith(f"0.first.weight: position 4 (calibrated {view.start}), 8 bits")
    assert view.beyond and title.endswith("beyond the DPU's shifts")
    assert f"saturated: {qp._percent(view.saturated_share)}" in texts(histogram.get_legend().get_texts())
    figure.canvas.draw()


def test_calibration_view_figure_shows_the_view(matting_scene):
    model, batches, x, truth = matting_scene
    view = widgets.calibration_view(model, batches, x, truth, count=1, equalise=True)
    figure = qp.calibration_view_figure(view)
    true, every, few, error = [ax for ax in figure.axes if ax.images][:4]
    for ax, image in ((true, view.truth), (every, view.reference), (few, view.matte), (error, view.error)):
        np.testing.assert_allclose(ax.images[0].get_array(), image[0])
    assert f"{view.float_iou:.4f}" in true.get_title(loc="left") and few.get_title(loc="left").startswith("1 batch\n")
    assert f"all 3 batches\nIoU {view.reference_iou:.4f}" == every.get_title(loc="left")
    stems = next(ax for ax in figure.axes if ax.get_ylabel() == "fix position")
    lines = {line.get_label(): line for line in stems.lines}
    assert lines["1 batch"].get_ydata().tolist() == list(view.fix_positions.values())
    moved = lines["moved"].get_xdata().tolist()
    assert view.changed and [list(view.fix_positions)[i] for i in moved] == list(view.changed)
    assert texts(stems.get_xticklabels()) == list(view.changed)
    there = lines["all 3 batches"].get_ydata()
    assert [there[i] for i in moved] == [other for _, other in view.changed.values()]
    assert stems.get_title(loc="left").startswith(f"{len(moved)} of {len(there)} positions differ, 8 bits, equalised")
    figure.canvas.draw()
