"""Patches: exact inverses, positions counted by hand, seams hidden, memory bounded, every error branch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data

from i2ilib import I2IError, patches
from i2ilib.patches import Grid


def picture(height, width, channels=3, dtype=torch.float32, seed=0):
    return torch.rand(1, channels, height, width, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_grid_counts_of_the_paper():
    # 17 x 9 HD frames cut at stride 64: unfold counts them
    ones = torch.ones(1, 1, 1024, 2048)
    expected = torch.nn.functional.unfold(ones, 256, stride=64).shape[-1]
    assert len(Grid(1024, 2048, stride=64)) == len(Grid(1024, 2048, stride=64).positions) == expected


def test_last_patch_is_aligned_with_the_edge():
    grid = Grid(10, 7, patch=4, stride=3)
    assert grid.tops == [0, 3, 6] and grid.lefts == [0, 3]
    assert grid.positions[0] == (0, 0) and grid.positions[-1] == (6, 3)
    assert Grid(11, 8, patch=4, stride=4).tops == [0, 4, 7]


def test_split_agrees_with_unfold():
    image = picture(48, 64)
    expected = torch.nn.functional.unfold(image, 16, stride=8).view(3, 16, 16, -1).permute(3, 0, 1, 2)
    assert torch.equal(patches.split(image, patch=16, stride=8), expected)
    assert torch.equal(patches.split(image[0], patch=16, stride=8), expected)


FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", [(64, 96), (70, 101), (32, 32)])
def test_merge_undoes_split_exactly_for_stride_patch(size, dtype):
    image = picture(*size, dtype=dtype)
    back = patches.merge(patches.split(image, patch=32, stride=32), height=size[0], width=size[1], stride=32)
    assert back.dtype == dtype and torch.equal(back, image)


@pytest.mark.parametrize("stride", [8, 11, 16, 31])
def test_merge_undoes_split_with_overlap(stride):
    image = picture(70, 101, channels=1)
    parts = patches.split(image, patch=32, stride=stride)
    for feather in {0, 1, 32 - stride}:
        back = patches.merge(parts, height=70, width=101, stride=stride, feather=feather)
        assert (back - image).abs().max() < 1e-6


def test_overlap_is_the_plain_mean():
    parts = torch.tensor([0.0, 1.0, 4.0, 9.0]).view(4, 1, 1, 1).expand(4, 1, 4, 4)
    merged = patches.merge(parts, height=6, width=6, stride=2)[0, 0]
    ones = torch.nn.functional.fold(torch.ones(1, 16, 4), 6, 4, stride=2)
    sums = torch.nn.functional.fold(parts.reshape(1, 4, 16).transpose(1, 2), 6, 4, stride=2)
    torch.testing.assert_close(merged, (sums / ones)[0, 0])
    assert merged[2, 2] == 3.5


def test_feather_makes_a_seam_gradual():
    parts = torch.cat([torch.zeros(1, 1, 32, 32), torch.ones(1, 1, 32, 32)])
    steps = {}
    for feather in (0, 16):
        line = patches.merge(parts, height=32, width=48, stride=16, feather=feather)[0, 0, 5]
        assert line[0] == 0 and line[-1] == 1 and (line.diff() >= 0).all()
        steps[feather] = line.diff().max().item()
    assert steps[0] == 0.5 and steps[16] < 0.11
    # the raised cosine, written down once more
    expected = torch.sin((torch.arange(16) + 0.5) / 16 * torch.pi / 2) ** 2
    torch.testing.assert_close(line[16:32], expected)


def test_batches_stream_through_merge():
    image = picture(100, 130)
    seen, largest = [], 0

    def network():
        nonlocal largest
        for positions, batch in patches.iter_batches(image, batch=5, patch=32, stride=32):
            seen.extend(positions)
            largest = max(largest, len(batch))
            yield batch

    assert torch.equal(patches.merge(network(), height=100, width=130, stride=32), image)
    assert seen == Grid(100, 130, patch=32, stride=32).positions and largest == 5


def test_merge_asks_for_one_batch_at_a_time():
    asked = []

    def lazy():
        for i in range(4):
            asked.append(i)
            yield torch.zeros(1, 1, 8, 8)
            assert len(asked) == i + 1  # the next one is asked for only after this one was used

    patches.merge(lazy(), height=16, width=16, stride=8)
    assert asked == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("size", "expected"),
    [((2160, 3840), (2048, 3840)), ((1080, 1920), (1024, 2048)), ((1, 1), (256, 256)), ((384, 640), (512, 768))],
)
def test_nearest_multiple(size, expected):  # 384 = 1.5 x 256 and 640 = 2.5 x 256: halves go up
    assert patches.nearest_multiple(*size) == expected


def test_fit_and_unfit():
    image = torch.from_numpy(data.astronaut()).permute(2, 0, 1)[None, :, :500, :490].float() / 255
    fitted = patches.fit(image, patch=64)
    assert fitted.shape == (1, 3, 512, 512)
    assert fitted.min() >= image.min() and fitted.max() <= image.max()
    back = patches.unfit(fitted, 500, 490)
    assert back.shape == image.shape
    assert -10 * torch.log10((back - image).square().mean()) > 38  # dB
    same = picture(128, 64)
    assert patches.fit(same, patch=64) is same and patches.unfit(same, 128, 64) is same


def test_fit_does_not_overshoot_a_matte():
    matte = (torch.arange(70) > 35).float().expand(1, 1, 70, 70)
    fitted = patches.fit(matte, patch=64)
    assert fitted.min() == 0 and fitted.max() == 1
    plain = torch.nn.functional.interpolate(matte, (64, 64), mode="bicubic", antialias=True)
    assert plain.max() > 1  # what is being prevented


def close(made, exact):
    """Whether values are what float64 gives, rounded once to their own type; less what float32 loses on the way."""
    slack = exact.abs().max() * (1e-12 if made.dtype == torch.float64 else 1e-5)
    return ((made.double() - exact).abs() <= exact.abs() * torch.finfo(made.dtype).eps / 2 + slack).all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("scale", [1, 1000])
def test_scaling_in_every_type(dtype, scale):
    """Limits of the type's own: what is rounded last stays within the range of the channel."""
    image = (picture(70, 101) * scale).to(dtype)
    exact = torch.nn.functional.interpolate(image.double(), (64, 96), mode="bicubic", antialias=True)
    exact = exact.clamp(image.double().amin((-2, -1), keepdim=True), image.double().amax((-2, -1), keepdim=True))
    made = patches.fit(image, patch=32)
    assert made.dtype == dtype and close(made, exact)
    assert (made.amax((-2, -1)) <= image.amax((-2, -1))).all() and (made.amin((-2, -1)) >= image.amin((-2, -1))).all()
    assert patches.unfit(made, 70, 101).dtype == dtype


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    size=st.tuples(st.integers(8, 40), st.integers(8, 40)),
    stride=st.integers(1, 8),
    dtype=st.sampled_from(FLOATS),
    seed=st.integers(0, 9),
)
def test_merging_in_every_type(size, stride, dtype, seed):
    """Unlike patches, averaged: the sums of fold over its counts."""
    height, width = (8 + (side - 8) // stride * stride for side in size)  # fold knows no patch aligned with the edge
    count = len(Grid(height, width, patch=8, stride=stride))
    parts = torch.randn(count, 2, 8, 8, generator=torch.Generator().manual_seed(seed)).to(dtype)
    columns = parts.double().flatten(1).T[None]
    sums = torch.nn.functional.fold(columns, (height, width), 8, stride=stride)
    counts = torch.nn.functional.fold(torch.ones_like(columns), (height, width), 8, stride=stride)
    made = patches.merge(parts, height=height, width=width, stride=stride)
    assert made.dtype == dtype and close(made, sums / counts)


# --- what is no picture, and no size -------------------------------------------------------------------------

PICTURES = {
    "fit": lambda image: patches.fit(image, patch=8),
    "unfit": lambda image: patches.unfit(image, 16, 16),
    "split": lambda image: patches.split(image, patch=8, stride=8),
    "iter_batches": lambda image: patches.iter_batches(image, batch=1, patch=8, stride=8),
    "merge": lambda image: patches.merge(image, height=8, width=8, stride=8),
}
NONE = {
    "codes": (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), r"uint8 on cpu. .* image.float\(\) / 255"),
    "integers": (torch.zeros(1, 3, 8, 8, dtype=torch.int64), r"int64 on cpu. .* image.float\(\) / 255"),
    "a mask": (torch.zeros(1, 3, 8, 8, dtype=torch.bool), "bool on cpu. Convert"),
    "complex": (torch.zeros(1, 3, 8, 8, dtype=torch.complex64), "complex64 on cpu. Convert"),
    "no image": (torch.zeros(0, 3, 8, 8), "at least one pixel"),
    "no channel": (torch.zeros(1, 0, 8, 8), "at least one pixel"),
    "no row": (torch.zeros(1, 3, 0, 8), "at least one pixel"),
    "no column": (torch.zeros(1, 3, 8, 0), "at least one pixel"),
    "a line": (torch.zeros(8), r"got \(8,\)"),
    "a plane": (torch.zeros(8, 8), r"got \(8, 8\)"),
    "a volume": (torch.zeros(1, 1, 3, 8, 8), r"got \(1, 1, 3, 8, 8\)"),
    "a number": (torch.tensor(1.0), r"got \(\)"),
    "NumPy's": (np.zeros((1, 3, 8, 8), np.float32), "got ndarray. .*torch.as_tensor"),
    "nothing": (None, "got NoneType"),
}


@pytest.mark.parametrize("given", NONE)
@pytest.mark.parametrize("name", PICTURES)
def test_what_is_no_picture(name, given):
    image, message = NONE[given]
    with pytest.raises(I2IError, match=rf"^(image|patches): expected .*{message}"):
        PICTURES[name](image)


IMAGE, PARTS = torch.zeros(1, 3, 16, 16), torch.zeros(4, 3, 8, 8)
SIZES = {
    "patch": [
        lambda size: Grid(16, 16, patch=size, stride=1),
        lambda size: patches.nearest_multiple(16, 16, patch=size),
        lambda size: patches.fit(IMAGE, patch=size),
        lambda size: patches.split(IMAGE, patch=size, stride=1),
        lambda size: patches.iter_batches(IMAGE, batch=1, patch=size, stride=1),
    ],
    "stride": [
        lambda size: Grid(16, 16, patch=8, stride=size),
        lambda size: patches.split(IMAGE, patch=8, stride=size),
        lambda size: patches.iter_batches(IMAGE, batch=1, patch=8, stride=size),
        lambda size: patches.merge(PARTS, height=16, width=16, stride=size),
    ],
    "height": [
        lambda size: Grid(size, 16, patch=8, stride=8),
        lambda size: patches.nearest_multiple(size, 16),
        lambda size: patches.unfit(IMAGE, size, 16),
        lambda size: patches.merge(PARTS, height=size, width=16, stride=8),
    ],
    "width": [
        lambda size: Grid(16, size, patch=8, stride=8),
        lambda size: patches.nearest_multiple(16, size),
        lambda size: patches.unfit(IMAGE, 16, size),
        lambda size: patches.merge(PARTS, height=16, width=size, stride=8),
    ],
    "batch": [lambda size: patches.iter_batches(IMAGE, batch=size, patch=8, stride=8)],
}


@pytest.mark.parametrize("size", [0, -1, 2.5, 8.0, True, "8", None])
@pytest.mark.parametrize(("name", "call"), [(name, call) for name, calls in SIZES.items() for call in calls])
def test_what_is_no_size(name, call, size):
    with pytest.raises(I2IError, match=rf"^{name}: expected a whole number from 1, got {size!r}$"):
        call(size)


def test_sizes_of_numpy_are_sizes():
    eight, sixteen = np.int64(8), np.uint16(16)
    parts = patches.split(IMAGE + 1, patch=eight, stride=eight)
    assert torch.equal(
        patches.merge(parts, height=sixteen, width=sixteen, stride=eight, feather=np.int64(0)), IMAGE + 1
    )
    assert patches.fit(IMAGE, patch=np.int64(12)).shape[-2:] == (12, 12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Grid(255, 300), "at least 256 x 256 pixels, got 255 x 300"),
        (lambda: Grid(300, 300, patch=64, stride=65), "1 to the patch size 64, got 65"),
        (lambda: Grid(300, 300, patch=64, stride=0), "stride"),
        (lambda: patches.split(torch.zeros(2, 3, 64, 64), patch=32, stride=32), r"\(C, H, W\)"),
        (lambda: patches.split(torch.zeros(3, 64, 64, dtype=torch.uint8), patch=32, stride=32), "uint8"),
        (lambda: patches.split(torch.zeros(3, 20, 64), patch=32, stride=32), "got 20 x 64"),
        (
            lambda: patches.iter_batches(torch.zeros(3, 64, 64), batch=0, patch=32, stride=32),
            "batch: expected",
        ),
        (lambda: patches.fit(torch.zeros(3, 64, 64)), r"\(N, C, H, W\)"),
        (lambda: patches.unfit(torch.zeros(1, 3, 64, 64, dtype=torch.int32), 8, 8), "int32"),
        (lambda: patches.merge(torch.zeros(3, 1, 8, 8), height=16, width=16, stride=8), "expected 4 .* got 3"),
        (lambda: patches.merge(torch.zeros(5, 1, 8, 8), height=16, width=16, stride=8), "expected 4 .* got 5"),
        (lambda: patches.merge(torch.zeros(4, 1, 8, 9), height=16, width=16, stride=8), r"\(N, C, patch, patch\)"),
        (lambda: patches.merge(torch.zeros(4, 8, 8), height=16, width=16, stride=8), r"\(N, C, patch, patch\)"),
        (lambda: patches.merge([], height=16, width=16), "at least one batch"),
        (
            lambda: patches.merge([torch.zeros(1, 1, 8, 8), torch.zeros(3, 2, 8, 8)], height=16, width=16, stride=8),
            r"all \(1, 8, 8\)",
        ),
        (lambda: patches.merge(torch.zeros(4, 1, 8, 8), height=16, width=16, stride=9), "stride"),
        (lambda: patches.merge(torch.zeros(4, 1, 8, 8), height=16, width=16, stride=8, feather=1), "overlap of 0"),
        (
            lambda: patches.merge(torch.zeros(9, 1, 8, 8), height=16, width=16, stride=4, feather=-1),
            "feather: .* from 0",
        ),
        (lambda: patches.merge(torch.zeros(9, 1, 8, 8), height=16, width=16, stride=4, feather=0.5), "feather: .* 0.5"),
        (
            lambda: patches.merge(
                [torch.zeros(1, 1, 8, 8), torch.zeros(3, 1, 8, 8).half()], height=16, width=16, stride=8
            ),
            r"all \(1, 8, 8\) torch.float32 on cpu, got \(3, 1, 8, 8\) torch.float16 on cpu",
        ),
        (
            lambda: patches.merge(
                [torch.zeros(1, 1, 8, 8), torch.zeros(3, 1, 8, 8, device="meta")], height=16, width=16, stride=8
            ),
            "torch.float32 on meta",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(I2IError, match=message):
        call()
