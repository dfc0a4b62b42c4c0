"""The codec avatar decoder against Table I and the text of the F-CAD paper, and its ways to refuse."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from i2ilib import models
from i2ilib.errors import I2IError
from i2ilib.models import CodecAvatarConfig, CodecAvatarDecoder
from i2ilib.models.analysis import count_macs, count_parameters
from i2ilib.models.codec_avatar import UntiedConv2d

SMALL = {"size": 64, "width": 0.125}


def inputs(n: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(n, 256, generator=generator), torch.randn(n, 3, generator=generator)


def truncated(value: float) -> float:
    """To one decimal, as the paper prints."""
    return int(value * 10 + 1e-9) / 10


@pytest.fixture(scope="module")
def decoder():
    with torch.device("meta"):
        return CodecAvatarDecoder()


@pytest.fixture(scope="module")
def gop(decoder):
    """2 × MACs of each branch alone, in 1e9."""
    examples = {1: torch.zeros(1, 4, 8, 8, device="meta"), 2: torch.zeros(1, 7, 8, 8, device="meta")}
    return {i: 2e-9 * count_macs(decoder.branch(i), examples[min(i, 2)]) for i in (1, 2, 3)}


def test_operations_are_those_of_table_1(gop):
    # operations count activations and doubled pixels too (Eq. 3); convolutions alone stay just below
    assert gop == pytest.approx({1: 1.993932, 2: 11.323294, 3: 4.931174}, abs=1e-6)
    layout = CodecAvatarConfig().layout
    blocks = {p: sum(5 * c.co * c.size**2 for c in convs.values() if c.block) * 1e-9 for p, convs in layout.items()}
    whole = {1: gop[1] + blocks["geometry"], 2: gop[2] + blocks["shared"] + blocks["texture"]}
    whole[3] = gop[3] + blocks["shared"]
    assert whole[1] == pytest.approx(1.997660, abs=1e-6) and whole[2] == pytest.approx(11.356512, abs=1e-6)
    assert [truncated(whole[i]) for i in (1, 2, 3)] == [1.9, 11.3, 4.9]
    alone = 2e-9 * layout["warp"]["conv6"].ci * 2 * 256**2 * 25
    shared = whole[3] - alone
    assert truncated(shared) == 4.5  # 18.1 − 13.6, the part that Table I counts twice


def test_three_used_channels_need_less_than_the_padded_four():
    with torch.device("meta"):
        exact = CodecAvatarDecoder(padded=False)
        macs = count_macs(exact.branch(1), torch.zeros(1, 4, 8, 8))
    assert 2e-9 * macs == pytest.approx(1.889075, abs=1e-6)


def test_parameters_are_those_of_table_1(decoder):
    counts = [count_parameters(decoder.branch(i)) / 1e6 for i in (1, 2, 3)]
    assert [truncated(count) for count in counts] == [1.1, 6.1, 1.9]
    assert counts == pytest.approx([1.145, 6.162, 1.938], abs=1e-3)
    assert count_parameters(decoder) / 1e6 == pytest.approx(7.310, abs=1e-3)


def test_all_blocks_untied_have_one_bias_tensor_more():
    outputs = ("geometry.conv6", "texture.conv8", "warp.conv6")
    with torch.device("meta"):
        assert count_parameters(CodecAvatarDecoder(tied=outputs)) / 1e6 == pytest.approx(8.359, abs=1e-3)


def test_the_largest_map_and_the_narrowest_convolution_are_the_papers():
    layout = CodecAvatarConfig().layout
    conv7 = layout["texture"]["conv7"]
    assert (conv7.ci, conv7.co) == (16, 16)
    maps = [(c.co, c.size << c.doubles, c.size << c.doubles) for convs in layout.values() for c in convs.values()]
    assert max(maps, key=np.prod) == (16, 1024, 1024)
    # DNNBuilder's bound: 16 × 16 multiplications a cycle at 200 MHz
    assert 200e6 / (conv7.size**2 * conv7.kernel**2) == pytest.approx(30.5, abs=0.05)


def test_shapes_are_those_of_table_1(decoder):
    with torch.device("meta"):
        avatar = decoder(torch.zeros(2, 256), torch.zeros(2, 3))
    assert [tuple(x.shape) for x in avatar] == [(2, 3, 256, 256), (2, 3, 1024, 1024), (2, 2, 256, 256)]


@pytest.mark.parametrize("tied", [(), CodecAvatarConfig().tied])
@pytest.mark.parametrize("size", [32, 64])
def test_branches_one_by_one_give_what_the_decoder_gives(size, tied):
    torch.manual_seed(0)
    decoder = CodecAvatarDecoder(size=size, width=0.125, tied=tied).eval()
    latent, view = inputs()
    code, seen = decoder.codes(latent, view)
    assert code.shape == (2, 4, 8, 8) and torch.equal(seen[:, :4], code)
    assert torch.equal(seen[:, 4:], view[:, :, None, None].expand(2, 3, 8, 8))
    avatar = decoder(latent, view)
    assert [tuple(x.shape[1:]) for x in avatar] == [
        *((3, size // 4, size // 4), (3, size, size), (2, size // 4, size // 4))
    ]
    assert torch.equal(decoder.branch(1)(code)[:, :3], avatar.geometry)
    assert not decoder.branch(1)(code)[:, 3].any()  # the padding channel
    assert torch.equal(decoder.branch(2)(seen), avatar.texture)
    assert torch.equal(decoder.branch(3)(seen), avatar.warp)
    assert decoder.branch(2).training is False


def test_geometry_does_not_depend_on_the_view():
    torch.manual_seed(0)
    decoder, (latent, view) = CodecAvatarDecoder(**SMALL), inputs()
    a, b = decoder(latent, view), decoder(latent, -view)
    assert torch.equal(a.geometry, b.geometry)
    assert not torch.equal(a.texture, b.texture) and not torch.equal(a.warp, b.warp)


def test_untied_convolution_is_an_ordinary_one_and_a_picture():
    torch.manual_seed(0)
    untied, x = UntiedConv2d(3, 5, 5, size=7), torch.randn(2, 3, 7, 7)
    nn.init.normal_(untied.bias)
    tied = nn.functional.conv2d(x, untied.conv.weight, torch.arange(5.0), padding=2)
    wanted = tied + (untied.bias - torch.arange(5.0)[:, None, None])
    torch.testing.assert_close(untied(x), wanted)
    assert count_parameters(untied) == 3 * 5 * 25 + 5 * 7 * 7


def test_without_untied_biases_the_inside_cannot_tell_where_it_is():
    names = [f"{part}.{name}" for part, convs in CodecAvatarConfig(**SMALL).layout.items() for name in convs]
    torch.manual_seed(0)
    decoder = CodecAvatarDecoder(**SMALL, tied=names).eval()
    # far from the borders a constant code gives a constant picture, whatever the weights
    deep = decoder.geometry[:2](torch.ones(1, 4, 40, 40))[..., 10:-10, 10:-10]
    torch.testing.assert_close(deep, deep[..., :1, :1].expand_as(deep))


def test_slope_is_the_dpus(decoder):
    assert {m.negative_slope for m in decoder.modules() if isinstance(m, nn.LeakyReLU)} == {26 / 256}
    assert {m.mode for m in decoder.modules() if isinstance(m, nn.Upsample)} == {"nearest"}


def test_a_saved_decoder_comes_back(tmp_path):
    decoder, (latent, view) = models.build("codec_avatar", **SMALL, tied=["warp.conv6"]).eval(), inputs()
    models.save(tmp_path / "d.safetensors", decoder, task="avatar")
    loaded, meta = models.load(tmp_path / "d.safetensors")
    assert loaded.config == decoder.config and meta == {"task": "avatar"}
    for a, b in zip(loaded(latent, view), decoder(latent, view), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"size": 100}, r"size.*32, 64, 128, 256, 512, 1024.*100"),
        ({"size": 16}, "size"),
        ({"width": 0}, "width.*positive"),
        ({"width": float("inf")}, "width.*positive"),
        ({"tied": ("texture.conv5",)}, r"tied.*shared\.conv5.*texture\.conv5"),
        ({"depth": 3}, "fields from.*depth"),
    ],
)
def test_configurations_that_make_no_decoder_are_refused(fields, said):
    with pytest.raises(I2IError, match=f"(?s){said}"):
        CodecAvatarDecoder(**fields)


@pytest.mark.parametrize(("latent", "view"), [((2, 255), (2, 3)), ((2, 256), (2, 4)), ((2, 256), (1, 3))])
def test_other_codes_are_refused(latent, view):
    with pytest.raises(I2IError, match=r"latent \(N, 256\) and view \(N, 3\)"):
        CodecAvatarDecoder(**SMALL)(torch.zeros(latent), torch.zeros(view))


def test_there_are_three_branches(decoder):
    with pytest.raises(I2IError, match="1, 2 or 3"):
        decoder.branch(0)


def test_configuration_is_frozen_and_of_json_values():
    config = CodecAvatarConfig(**SMALL)
    assert CodecAvatarConfig(**dataclasses.asdict(config) | {"tied": list(config.tied)}) == config
