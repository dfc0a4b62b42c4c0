"""Models against published figures and outputs, and every way in which they refuse."""

import copy
import csv
import dataclasses
import pickle
import warnings

import numpy as np
import pytest
import torch
from conftest import shared
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from i2ilib import models
from i2ilib.errors import I2IError, IntegrityError
from i2ilib.models import Discriminator, Generator, SRUNet, UNet, load_published, reparametrise
from i2ilib.models.analysis import count_macs, count_parameters, layer_table, receptive_field
from i2ilib.models.layers import Block, Enlarger, enlarge
from i2ilib.quant import inspect

SMALL = {
    "pix2pix": {"width": 4, "levels": 5},
    "unet": {"filters": (4, 6, 8, 10), "scale": 2},
    "srunet": {"n_filters": 8, "layer_multiplier": 0.7},
}
PUBLISHED = {"srunet_2x_crf23.pth": "y_2x", "srunet_1.5x_crf23.pth": "y_1_5x"}


def small(name: str, **fields) -> nn.Module:
    torch.manual_seed(0)
    return models.build(name, **SMALL[name] | fields).eval()


def stirred(model: nn.Module) -> nn.Module:
    """The model with BatchNorm statistics away from 0 and 1, and weights large enough to tell signals apart."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.bias)
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.xavier_normal_(module.weight)
    return model


def in_place_pix2pix(generator: Generator, x: torch.Tensor) -> torch.Tensor:
    """pix2pix's nested blocks with its in-place activations, on the generator's weights."""
    depth, slope = generator.config.levels, generator.config.negative_slope

    def apply(part: nn.Sequential, y: torch.Tensor) -> torch.Tensor:
        y = part.conv(y)
        return part.norm(y) if hasattr(part, "norm") else y

    def block(level: int, x: torch.Tensor) -> torch.Tensor:
        y = apply(generator.encoder[level], nn.functional.leaky_relu_(x, slope) if level else x)
        if level < depth - 1:
            y = block(level + 1, y)
        y = nn.functional.relu_(y)
        if level == 0:
            return torch.tanh(generator.head.conv(y))
        return torch.cat([x, apply(generator.decoder[depth - 1 - level], y)], 1)

    return block(0, x)


# --- the pix2pix generator -----------------------------------------------------------------------


@pytest.mark.parametrize("order", ["dpu", "pix2pix"])
def test_generator_has_the_published_size(order):
    with torch.device("meta"):
        generator = Generator(order=order)
    assert round(count_parameters(generator) / 1e6, 3) == 54.414
    assert generator.config.filters == [64, 128, 256, 512, 512, 512, 512, 512]
    convolutions = [m for m in generator.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    assert len(convolutions) == 16
    assert {(m.kernel_size, m.stride, m.padding) for m in convolutions} == {((4, 4), (2, 2), (1, 1))}
    assert [m.bias is not None for m in convolutions] == [False] * 15 + [True]
    assert [m.out_channels for m in convolutions[8:]] == [512, 512, 512, 512, 256, 128, 64, 3]


def test_generator_costs_the_published_operations():
    with torch.device("meta"):
        generator, patch = Generator(), torch.zeros(1, 3, 256, 256)
    assert round(count_macs(generator, patch) / 1e9, 2) == 6.05


def operators(generator: Generator) -> list[str]:
    """The operators in the order in which FX meets them."""
    graph = torch.fx.symbolic_trace(generator)
    kinds = {name: type(module).__name__ for name, module in graph.named_modules()}
    return [kinds[n.target] if n.op == "call_module" else "cat" for n in graph.graph.nodes if n.op.startswith("call")]


def test_dpu_order_activates_before_the_concat():
    conv, norm, leaky, up = "Conv2d", "BatchNorm2d", "LeakyReLU", "ConvTranspose2d"
    assert operators(small("pix2pix", levels=3)) == [
        *(conv, leaky, conv, norm, leaky, conv, "ReLU"),
        *(up, norm, "ReLU", "cat", up, norm, "ReLU", "cat", up, "Tanh"),
    ]


def test_pix2pix_order_activates_before_the_convolution():
    conv, norm, leaky, up = "Conv2d", "BatchNorm2d", "LeakyReLU", "ConvTranspose2d"
    assert operators(small("pix2pix", levels=3, order="pix2pix")) == [
        *(conv, leaky, conv, norm, leaky, conv),
        *("ReLU", up, norm, "cat", "ReLU", up, norm, "cat", "ReLU", up, "Tanh"),
    ]


def test_slopes_are_the_dpus_and_pix2pixs():
    def slopes(order):
        return {m.negative_slope for m in small("pix2pix", order=order).modules() if isinstance(m, nn.LeakyReLU)}

    assert slopes("dpu") == {0.1015625}
    assert slopes("pix2pix") == {0.2}


def test_pix2pix_order_equals_the_in_place_original():
    generator = stirred(small("pix2pix", order="pix2pix"))
    x = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        torch.testing.assert_close(generator(x), in_place_pix2pix(generator, x.clone()), rtol=0, atol=1e-6)


@torch.no_grad()
def test_orders_differ_only_in_the_negative_part_of_the_skips():
    """Equal where the negative part is cut off (slope 0) or the decoder ignores its skips; different otherwise."""
    x = torch.randn(2, 3, 64, 64)

    def both(slope: float, *, blind: bool) -> list[torch.Tensor]:
        pair = [stirred(small("pix2pix", order=order, slope=slope)) for order in ("dpu", "pix2pix")]
        pair[1].load_state_dict(pair[0].state_dict())
        for generator in pair:
            ups = [*(up.conv for up in generator.decoder), generator.head.conv]
            for up, down in zip(ups[1:], reversed(generator.encoder[:-1]), strict=True):
                if blind:
                    up.weight[: down.conv.out_channels] = 0
        return [generator(x) for generator in pair]

    torch.testing.assert_close(*both(0.0, blind=False), rtol=0, atol=1e-6)
    torch.testing.assert_close(*both(0.2, blind=True), rtol=0, atol=1e-6)
    dpu, original = both(0.2, blind=False)
    assert (dpu - original).abs().max() > 1e-3


def test_dropout_sits_in_the_middle_decoder_blocks_only():
    with torch.device("meta"):
        generator = Generator(dropout=0.5)
    assert [hasattr(up, "dropout") for up in generator.decoder] == [False, True, True, True, False, False, False]
    assert not any(isinstance(m, nn.Dropout) for m in Generator(width=1).modules())


@torch.no_grad()
def test_initialisation_is_pix2pixs():
    torch.manual_seed(0)
    generator = Generator(width=16)
    weights = generator.encoder[4].conv.weight
    assert abs(weights.mean()) < 1e-3
    assert weights.std().item() == pytest.approx(0.02, rel=0.02)
    norms = torch.cat([m.weight for m in generator.modules() if isinstance(m, nn.BatchNorm2d)])
    assert norms.mean().item() == pytest.approx(1.0, abs=0.005)
    assert norms.std().item() == pytest.approx(0.02, rel=0.1)
    assert not generator.head.conv.bias.any()


@pytest.mark.parametrize(
    "fields",
    [
        {"width": 0},
        {"levels": 1},
        {"in_channels": 2.5},
        {"out_channels": -1},
        {"order": "pixpix"},
        {"dropout": 1.0},
        {"depth": 8},
    ],
)
def test_generator_refuses_impossible_configurations(fields):
    with pytest.raises(I2IError, match=next(iter(fields))):
        Generator(**fields)


@pytest.mark.parametrize("shape", [(1, 3, 48, 64), (1, 3, 64, 48), (1, 1, 64, 64), (3, 64, 64), (1, 3, 0, 64)])
def test_generator_refuses_shapes_that_do_not_fit(shape):
    with pytest.raises(I2IError, match="multiples of 32"):
        small("pix2pix")(torch.zeros(shape))


# --- the PatchGAN --------------------------------------------------------------------------------


def test_discriminator_has_the_published_size_and_grid():
    discriminator = Discriminator()
    assert round(count_parameters(discriminator) / 1e6, 3) == 2.769
    assert discriminator.eval()(torch.zeros(1, 6, 256, 256)).shape == (1, 1, 30, 30)


def test_discriminator_sees_70_pixels():
    chain = [(m.kernel_size[0], m.stride[0]) for m in Discriminator(width=1).modules() if isinstance(m, nn.Conv2d)]
    assert receptive_field(chain) == 70
    discriminator = stirred(Discriminator(width=4)).eval().double()
    x = torch.randn(1, 6, 128, 128, dtype=torch.float64, requires_grad=True)
    y = discriminator(x)
    y[0, 0, y.shape[2] // 2, y.shape[3] // 2].backward()
    rows, columns = (x.grad.abs().sum((0, 1, axis)).nonzero() for axis in (3, 2))
    assert [len(rows), len(columns)] == [70, 70]
    assert [int(rows.max() - rows.min()), int(columns.max() - columns.min())] == [69, 69]


def test_dilation_widens_the_field():
    net = nn.Sequential(
        nn.Conv2d(1, 1, 3, bias=False), nn.Conv2d(1, 1, 3, 2, bias=False), nn.Conv2d(1, 1, 3, dilation=2)
    )
    for p in net.parameters():
        nn.init.ones_(p)
    x = torch.zeros(1, 1, 33, 33, requires_grad=True)
    net(x)[0, 0, 5, 5].backward()
    rows = x.grad.sum((0, 1, 3)).nonzero()
    assert int(rows.max() - rows.min()) + 1 == receptive_field([(3, 1), (3, 2, 1), (3, 1, 2)]) == 13


def test_discriminator_refuses_other_channels_and_sizes():
    with pytest.raises(I2IError, match=r"\(N, 6, H, W\)"):
        Discriminator(width=2)(torch.zeros(1, 3, 64, 64))
    with pytest.raises(I2IError, match="layers"):
        Discriminator(layers=0)


# --- SRUNet and UNet -----------------------------------------------------------------------------


def golden() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    data = np.load(shared("data/srunet") / "golden_io.npz")
    x = torch.from_numpy(data["input_rgb_uint8"]).permute(2, 0, 1)[None].float() / 255 * 2 - 1
    return x, {key: torch.from_numpy(data[key])[None] for key in PUBLISHED.values()}


@pytest.mark.parametrize(("file", "key"), PUBLISHED.items())
@torch.no_grad()
def test_published_weights_give_the_authors_output(file, key):
    x, expected = golden()
    model = load_published(shared("data/srunet") / file)
    torch.testing.assert_close(model(x), expected[key], rtol=0, atol=1e-5)
    folded = reparametrise(model)
    torch.testing.assert_close(folded(x), model(x), rtol=0, atol=1e-6)
    assert folded.config.folded
    assert not model.config.folded


@pytest.mark.parametrize(
    ("file", "fields", "parameters", "used", "macs"),
    [
        ("srunet_2x_crf23.pth", {}, 740_975, 665_932, 134_304),
        (
            "srunet_1.5x_crf23.pth",
            {"n_filters": 48, "layer_multiplier": 0.7, "downsample": 0.75},
            290_199,
            260_700,
            52_128,
        ),
    ],
)
def test_srunet_has_the_published_size_and_names(file, fields, parameters, used, macs):
    model = SRUNet(**fields)
    folded = reparametrise(model)
    assert count_parameters(model) == parameters
    assert count_parameters(folded) == used
    assert count_macs(folded, torch.zeros(1, 3, 16, 24)) == macs * 16 * 24
    with open(shared("data/srunet") / "state_dict_keys.csv") as rows:
        named = {row["key"]: row["shape"] for row in csv.DictReader(rows) if row["file"] == file}
    assert {key: "x".join(map(str, t.shape)) for key, t in model.state_dict().items()} == named


@pytest.mark.parametrize("name", ["unet", "srunet"])
@torch.no_grad()
def test_folding_keeps_the_output(name):
    model, x = small(name), torch.randn(2, 3, 16, 24)
    folded = reparametrise(model)
    torch.testing.assert_close(folded(x), model(x), rtol=0, atol=1e-6)
    torch.testing.assert_close(reparametrise(folded)(x), folded(x), rtol=0, atol=0)
    assert not any(m.conv_adapter for m in folded.modules() if isinstance(m, Block))


def test_folding_stays_on_the_device_and_in_the_precision():
    with torch.device("meta"):
        model = SRUNet().bfloat16()
    assert {(p.device.type, p.dtype) for p in reparametrise(model).parameters()} == {("meta", torch.bfloat16)}


def test_folding_leaves_the_model_alone():
    model = small("srunet")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    nn.init.zeros_(reparametrise(model).conv_last.weight)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["unet", "srunet"])
@torch.no_grad()
def test_without_residual_only_the_core_is_left(name):
    model, x = small(name), torch.rand(1, 3, 16, 24) * 2 - 1
    core = models.build(name, **SMALL[name], residual=False)
    core.load_state_dict(model.state_dict())
    detail = core.eval()(x)
    bicubic = nn.functional.interpolate(x, scale_factor=2, mode="bicubic")
    torch.testing.assert_close(model(x), (detail + bicubic).clamp(-1, 1))
    graph = torch.export.export(core, (x,)).graph_module.code
    assert "bicubic" not in graph
    assert "clamp" not in graph


@given(size=st.tuples(st.integers(1, 40), st.integers(1, 40)), scale=st.sampled_from([2, 4]))
@settings(max_examples=20, deadline=None)
def test_frames_of_any_size_are_enlarged(size, scale):
    model = small("srunet", scale=scale)
    nn.init.zeros_(model.conv_last.weight)
    nn.init.zeros_(model.conv_last.bias)
    frames = torch.rand(2, 3, *size)
    shown = enlarge(model, frames)
    plain = nn.functional.interpolate(frames * 2 - 1, scale_factor=scale, mode="bicubic").clamp(-1, 1)
    assert shown.shape == (2, 3, scale * size[0], scale * size[1]) and shown.min() >= 0 and shown.max() <= 1
    torch.testing.assert_close(shown, (plain + 1) / 2, rtol=0, atol=1e-5)  # the border is repeated either way


@torch.no_grad()
def test_a_frame_that_fits_is_not_padded():
    model, frames = small("srunet"), torch.rand(1, 3, 16, 24)
    torch.testing.assert_close(enlarge(model, frames), (model(frames * 2 - 1) + 1) / 2, rtol=0, atol=1e-6)
    third = small("srunet", downsample=0.75)
    assert enlarge(third, torch.rand(1, 3, 30, 41)).shape == (1, 3, 45, 61)  # down, as PyTorch does


@torch.no_grad()
def test_a_silent_network_is_the_bicubic_enlargement():
    model = small("unet", scale=4)
    nn.init.zeros_(model.conv_last.weight)
    nn.init.zeros_(model.conv_last.bias)
    x = torch.rand(1, 3, 8, 16) * 2 - 1
    torch.testing.assert_close(model(x), nn.functional.interpolate(x, scale_factor=4, mode="bicubic").clamp(-1, 1))


def test_unet_is_the_classic_width():
    with torch.device("meta"):
        table = layer_table(UNet(folded=True), torch.zeros(1, 3, 96, 96))
    convolutions = table[table.type == "Conv2d"]
    widths = [shape[0] for shape in convolutions.output]
    assert widths == [64, 64, 128, 128, 256, 256, 512, 512, 256, 256, 128, 128, 64, 64, 48]
    assert table.output.iloc[-1] == (3, 384, 384)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (SRUNet, {"n_filters": 9}),
        (SRUNet, {"n_filters": 0}),
        (SRUNet, {"layer_multiplier": 0.4}),
        (SRUNet, {"downsample": 1.5}),
        (SRUNet, {"scale": 0}),
        (UNet, {"filters": (8, 8, 8)}),
        (UNet, {"filters": (8, 8, 0, 8)}),
        (UNet, {"scale": 1.5}),
    ],
)
def test_enlargers_refuse_impossible_configurations(kind, fields):
    with pytest.raises(I2IError, match=next(iter(fields))):
        kind(**fields)


@pytest.mark.parametrize("kind", ["SRUNet", "UNet"])
def test_a_transposed_convolution_is_bilinear_but_for_the_border(kind):
    """And it holds in int8: every weight is a whole number of sixteenths."""
    torch.manual_seed(0)
    net = {"SRUNet": models.SRUNet(n_filters=4, layer_multiplier=0.5), "UNet": models.UNet(filters=(2, 3, 4, 4))}[kind]
    other = models.with_doubling(net.eval(), "transposed")
    x, edge = torch.rand(1, 3, 256, 256) * 2 - 1, 120 * net.config.scale
    with torch.no_grad():
        apart = (net(x) - other(x)).abs()
    assert float(apart[..., edge:-edge, edge:-edge].max()) < 1e-6 < float(apart.max())
    assert all(torch.equal(up.weight * 16, (up.weight * 16).round()) for up in (other.upsample1, other.upsample3))
    assert inspect(models.reparametrise(other), example=x[..., :64, :64]).cpu[0].operator == "upsample_bicubic2d"
    back = models.with_doubling(models.with_doubling(other, "nearest"), "bilinear")
    assert {*back.state_dict()} == {*net.state_dict()}
    with torch.no_grad():
        assert torch.equal(back(x), net(x))
        folded = models.reparametrise(other)
        torch.testing.assert_close(folded(x[..., :64, :64]), other(x[..., :64, :64]), rtol=0, atol=1e-5)


def test_an_unknown_way_of_doubling():
    for make in (models.SRUNet, models.UNet):
        with pytest.raises(I2IError, match="upsample: expected 'bilinear' or"):
            make(upsample="lanczos")


def test_enlargers_refuse_shapes_that_do_not_fit():
    for name in ("unet", "srunet"):
        with pytest.raises(I2IError, match="multiples of 8"):
            small(name)(torch.zeros(1, 3, 12, 16))
    with pytest.raises(NotImplementedError):
        Enlarger().core(torch.zeros(1, 3, 8, 8))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(I2IError, match=r"gone\.pth"):
        load_published(tmp_path / "gone.pth")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>not found</html>",
        pickle.dumps({"a": pickle.Pickler}, protocol=2),
        {"weight": torch.zeros(2)},
        [torch.zeros(2)],
        "damaged",
        "stump",
    ],
    ids=["empty", "text", "pickle", "foreign", "list", "damaged", "stump"],
)
def test_a_file_of_something_else_is_named(tmp_path, content):
    path = tmp_path / "weights.pth"
    state = small("srunet").state_dict()
    if content == "damaged":
        torch.save(state, path)
        path.write_bytes(path.read_bytes()[:-2000])
    elif content == "stump":
        torch.save(state | {"conv_last.weight": torch.zeros(2, 4, 1, 1)}, path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(IntegrityError, match=r"weights\.pth"):
        load_published(path)


def test_load_published_takes_what_shapes_do_not_tell(tmp_path):
    torch.save(small("srunet").state_dict(), tmp_path / "small.pth")
    assert load_published(tmp_path / "small.pth").config == small("srunet").config
    assert load_published(tmp_path / "small.pth", downsample=0.5).config.downsample == 0.5
    with pytest.raises(I2IError, match="down_sample"):
        load_published(tmp_path / "small.pth", down_sample=0.5)


# --- all of them ---------------------------------------------------------------------------------

BATCH = torch.export.Dim("batch", min=1, max=64)


@pytest.mark.parametrize("name", [*SMALL, "pix2pix in its own order"])
@torch.no_grad()
def test_models_export_with_any_batch(name):
    model = small("pix2pix", order="pix2pix") if name not in SMALL else small(name)
    x = torch.randn(2, 3, 32, 64)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: BATCH},)).module()
    traced = torch.fx.symbolic_trace(model)
    for n in (1, 2, 5):
        x = torch.randn(n, 3, 32, 64)
        torch.testing.assert_close(program(x), model(x), rtol=0, atol=1e-6)
        torch.testing.assert_close(traced(x), model(x), rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # AMD's quantiser still traces
@torch.no_grad()
def test_models_trace_without_a_warning_about_their_shape():
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        traced = torch.jit.trace(small("pix2pix"), torch.zeros(1, 3, 32, 32))
    assert traced(torch.zeros(2, 3, 64, 32)).shape == (2, 3, 64, 32)


@pytest.mark.parametrize("name", SMALL)
def test_no_module_runs_twice(name):
    table = layer_table(small(name), torch.zeros(1, 3, 32, 32))
    assert table.name.is_unique


def test_layer_table_agrees_with_the_totals():
    model, x = small("srunet").train(), torch.zeros(2, 3, 16, 24)
    model.conv_last.eval()
    table = layer_table(model, x)
    assert table.macs.sum() == count_macs(model, x)
    assert table.parameters.sum() == count_parameters(reparametrise(model)) + sum(
        p.numel() for b in model.modules() if isinstance(b, Block) and b.sums for p in b.conv_adapter.parameters()
    )
    row = table[table.name == "dconv_down2.0.conv1"].iloc[0]
    assert (row.type, row.kernel, row.stride, row.output) == ("Conv2d", 3, 1, (8, 8, 12))
    assert row.macs == 2 * 8 * 4 * 9 * 8 * 12
    assert model.training, "the mode comes back"
    assert not model.conv_last.training, "of each module"


def test_layer_table_of_a_single_layer():
    table = layer_table(nn.Linear(3, 5), torch.zeros(2, 3))
    assert table.macs.tolist() == [30]
    assert table.output.tolist() == [(5,)]


# --- one file a model ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_a_saved_model_comes_back(name, tmp_path):
    model, x = stirred(small(name)), torch.randn(1, 3, 32, 32)
    other_layout = copy.deepcopy(model).to(memory_format=torch.channels_last)
    models.save(tmp_path / "new" / "m.safetensors", other_layout, q_in=4, colour="srgb")
    back, meta = models.load(tmp_path / "new" / "m.safetensors")
    assert meta == {"q_in": 4, "colour": "srgb"}
    assert back.config == model.config
    assert not back.training
    torch.testing.assert_close(back(x), model(x), rtol=0, atol=0)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in back.state_dict().items())


def test_configurations_are_values():
    for name in SMALL:
        config = small(name).config
        assert config == type(config)(**dataclasses.asdict(config))
        assert models.build(name, **SMALL[name]).config is not config
        with pytest.raises(dataclasses.FrozenInstanceError):
            config.scale = 3
    assert Generator(small("pix2pix").config, out_channels=1).config.width == 4


def test_build_and_save_refuse_what_they_do_not_know(tmp_path):
    with pytest.raises(I2IError, match="pix2pix or unet or srunet"):
        models.build("resnet")
    with pytest.raises(I2IError, match="Linear"):
        models.save(tmp_path / "m.safetensors", nn.Linear(2, 2))
    with pytest.raises(I2IError, match="suffix"):
        models.save(tmp_path / "m.pth", small("srunet"))
    with pytest.raises(I2IError, match="JSON"):
        models.save(tmp_path / "m.safetensors", small("srunet"), loss=torch.tensor(1.0))
    assert not list(tmp_path.iterdir())


def test_load_names_a_missing_file(tmp_path):
    with pytest.raises(I2IError, match=r"gone\.safetensors: .*no file"):
        models.load(tmp_path / "gone.safetensors")
    with pytest.raises(IntegrityError, match="folder"):
        (tmp_path / "folder").mkdir()
        models.load(tmp_path / "folder")


@pytest.mark.parametrize("part", [0.0, 0.001, 0.5, 0.999])
def test_load_names_a_truncated_file(tmp_path, part):
    path = tmp_path / "m.safetensors"
    models.save(path, small("srunet"))
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    with pytest.raises(IntegrityError, match=r"m\.safetensors"):
        models.load(path)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (None, "without a model"),
        ("{", "Expecting"),
        ("[]", "indices"),
        ('{"model": "srunet", "config": {}}', "meta"),
        ('{"model": "resnet", "config": {}, "meta": {}}', "resnet"),
        ('{"model": "srunet", "config": {"depth": 3}, "meta": {}}', "depth"),
        ('{"model": "srunet", "config": {"n_filters": "8"}, "meta": {}}', "n_filters"),
        ('{"model": "srunet", "config": {"n_filters": 16}, "meta": {}}', "size mismatch"),
        ('{"model": "unet", "config": {}, "meta": {}}', "Missing key"),
    ],
)
def test_load_names_a_file_that_does_not_fit(tmp_path, header, reason):
    path = tmp_path / "m.safetensors"
    save_file(SRUNet(n_filters=8).state_dict(), path, metadata=header and {"i2ilib": header})
    with pytest.raises(IntegrityError, match=rf"(?s)m\.safetensors.*{reason}"):
        models.load(path)
