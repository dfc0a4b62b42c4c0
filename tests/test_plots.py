"""Figures hold the data they were given, and wrong data are refused."""

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


@pytest.fixture(autouse=True)
def clean():
    with matplotlib.rc_context():
        plots.style()
        yield
    plt.close("all")


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
    bars = next(ax for ax in figure.axes if ax.containers)
    heights = [bar.get_height() for bar in bars.containers[0]]
    assert len(bars.containers) == 1 and sum(heights) == pytest.approx(100)
    clipped = plots.fixed_point_figure(widgets.fixed_point_view(image, 128, 128, exposure=1.0))
    assert len(next(ax for ax in clipped.axes if ax.containers).containers) == 2


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
    assert named == {"adversarial", "discriminator"}
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
