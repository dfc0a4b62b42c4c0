"""Gradient and connectivity error against the goldens, the definitions written out naively, SciPy and Octave."""

import csv
import math
import shutil
import subprocess
from fractions import Fraction

import numpy as np
import pytest
import torch
from conftest import shared
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import io as matlab
from scipy import ndimage
from skimage import io

from i2ilib import I2IError, metrics
from i2ilib.metrics import connectivity_error, gradient_error

LEVELS = (0, 25, 26, 51, 63, 76, 77, 102, 128, 153, 178, 204, 230, 255)  # with all that tie with a threshold


@pytest.fixture(scope="module")
def mattes():
    def read(name):
        return torch.from_numpy(io.imread(shared(f"data/matting/{name}.png"))).float()[None, None] / 255

    alpha, fba = read("lemur_alpha"), read("lemur_alpha_fba")
    return {
        "lemur_alpha.png": alpha,
        "lemur_alpha_fba.png": fba,
        "alpha thresholded at 0.5": (alpha > 0.5).float(),
        "alpha rolled 3 pixels to the right (numpy.roll, axis 1)": alpha.roll(3, -1),
    }


def test_goldens(mattes):
    alpha, fba = mattes["lemur_alpha.png"], mattes["lemur_alpha_fba.png"]
    clips = torch.cat([fba, fba.roll(2, -1)]), torch.cat([alpha, alpha.roll(3, -1)])
    found = {
        "MAD x1e3": lambda p: 1e3 * metrics.mad(p, alpha),
        "MSE x1e3": lambda p: 1e3 * metrics.mse(p, alpha),
        "Grad /1e3": lambda p: gradient_error(p, alpha),
        "Conn /1e3": lambda p: connectivity_error(p, alpha),
        "dtSSD x1e2": lambda p: 1e2 * metrics.dtssd(*clips),
    }
    with open(shared("data/metrics/matting_goldens.csv"), encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["metric"] for row in rows} == set(found)
    for row in rows:
        assert row["tolerance"] == "1e-3 relative"
        score = found[row["metric"]](mattes.get(row["prediction"]))
        assert score == pytest.approx(float(row["value"]), rel=2e-6), row  # far inside the tolerance


def test_goldens_are_of_the_matlab_variant(mattes):  # and the copies' deviation is no fixed share
    alpha = mattes["lemur_alpha.png"]
    deviations = []
    for name in list(mattes)[1:]:
        ours, theirs = (connectivity_error(mattes[name], alpha, variant=variant) for variant in ("matlab", "python"))
        deviations.append(theirs / ours - 1)
    assert deviations == pytest.approx([0.2455, -0.3281, -0.1397], abs=1e-4)


def test_variants_agree_where_the_matte_fills_the_frame(mattes):
    pred, alpha = (mattes[name][..., 150:550] for name in ("lemur_alpha_fba.png", "lemur_alpha.png"))
    ours, theirs = (connectivity_error(pred, alpha, variant=variant) for variant in ("matlab", "python"))
    assert ours == theirs
    pred, alpha = (torch.nn.functional.pad(matte, [100] * 4) for matte in (pred, alpha))
    assert connectivity_error(pred, alpha) == ours
    assert connectivity_error(pred, alpha, variant="python") > 1.2 * ours


# --- connectivity: the definition, in exact fractions and loops ------------------------------------------


def regions(both):
    """4-connected sets of (row, column), the first by columns first."""
    left, found = {(y, x) for y, row in enumerate(both) for x, inside in enumerate(row) if inside}, []
    while left:
        todo = [min(left, key=lambda place: place[::-1])]
        region = set()
        while todo:
            y, x = todo.pop()
            if (y, x) in left:
                left.remove((y, x))
                region.add((y, x))
                todo += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
        found.append(region)
    return found


def naive(pred, target, variant, steps=10):
    """Connectivity error times 1000 of two tables of 8-bit levels; every comparison is exact."""
    rows, columns = range(len(pred)), range(len(pred[0]))
    everything = {(y, x) for y in rows for x in columns}
    level = dict.fromkeys(everything, Fraction(1))
    inside = set(everything)
    for i in range(1, steps + 1):
        threshold = Fraction(i, steps)
        both = [[Fraction(min(pred[y][x], target[y][x]), 255) >= threshold for x in columns] for y in rows]
        found = regions(both)
        if variant == "python":  # regions by rows, the background before them
            found = [everything.difference(*found), *sorted(found, key=min)]
        largest = max(found, key=len, default=set())
        for place in inside - largest:
            level[place] = Fraction(i - 1, steps)
        inside &= largest
    total = Fraction(0)
    for y, x in everything:
        p, t = (Fraction(matte[y][x], 255) - level[y, x] for matte in (pred, target))
        total += abs((p if p >= Fraction(15, 100) else 0) - (t if t >= Fraction(15, 100) else 0))
    return float(total)


@st.composite
def pairs(draw):
    height, width = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    row = st.lists(st.sampled_from(LEVELS), min_size=width, max_size=width)
    matte = st.lists(row, min_size=height, max_size=height)
    return draw(matte), draw(matte)


@settings(max_examples=150, deadline=None)
@given(pairs(), st.sampled_from(["matlab", "python"]), st.booleans(), st.sampled_from([10, 4]))
def test_connectivity_is_as_defined(pair, variant, double, steps):
    dtype = torch.float64 if double else torch.float32
    pred, target = (torch.tensor(matte, dtype=dtype) / 255 for matte in pair)
    found = 1000 * connectivity_error(pred, target, variant=variant, step=1 / steps)
    assert found == pytest.approx(naive(*pair, variant, steps), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("whole", [10, 255])
def test_a_level_that_equals_a_threshold_reaches_it(whole, dtype):
    """A pixel at a threshold is connected up to it, so that the brighter one's distance is 0.2, not 0.3."""
    for tenths in range(1, 9) if whole == 10 else (2, 4, 6, 8):
        pred, target = (torch.full((1, 1), part * whole // 10, dtype=dtype) / whole for part in (tenths, tenths + 2))
        assert 1000 * connectivity_error(pred, target) == pytest.approx(0.2, abs=1e-6)


@pytest.mark.parametrize(
    ("pred", "target", "expected", "python"),
    [
        ([[0.0]], [[0.0]], 0, 0),
        ([[1.0]], [[1.0]], 0, 0),
        ([[1.0]], [[0.0]], 1, 0),  # nothing shared: all levels are 0; the background passes for connected
        ([[0.0] * 3] * 2, [[1.0] * 3] * 2, 6, 0),
        ([[0.5] * 3] * 2, [[0.5] * 3] * 2, 0, 0),
        ([[1.0, 0.0]], [[0.0, 1.0]], 2, 0),
        ([[1.0, 0.0, 1.0, 1.0]], [[1.0, 0.0, 1.0, 1.0]], 0, 0),
        ([[1.0, 0.0, 1.0, 1.0]], [[0.0, 0.0, 1.0, 1.0]], 1, 0),
    ],
)
def test_small_cases(pred, target, expected, python):
    pred, target = torch.tensor(pred), torch.tensor(target)
    for variant, value in (("matlab", expected), ("python", python)):
        assert 1000 * connectivity_error(pred, target, variant=variant) == pytest.approx(value, abs=1e-6)


def test_of_regions_of_one_size_the_first_by_columns_counts():
    both = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    lost = both.clone()
    lost[0, 1] = 0.5  # of the second region by columns, cut off at 0 from the threshold 0.1 on
    assert 1000 * connectivity_error(lost, both) == pytest.approx(0.5)
    lost = both.clone()
    lost[1, 0] = 0.95  # of the first, until the second is larger
    assert 1000 * connectivity_error(lost, both) == pytest.approx(0)


# --- connectivity: the MATLAB formulation, run by Octave -------------------------------------------------

OCTAVE = """
pkg load image
data = load('mattes.mat');
scores = zeros(1, numel(data.pred));
for k = 1:numel(data.pred)
  p = single(data.pred{k}) / 255;
  t = single(data.target{k}) / 255;
  level = -ones(size(p), 'single');
  steps = single(0:0.1:1);
  for i = 2:numel(steps)
    parts = bwconncomp(p >= steps(i) & t >= steps(i), 4);
    omega = false(size(p));
    if parts.NumObjects > 0
      [~, largest] = max(cellfun(@numel, parts.PixelIdxList));
      omega(parts.PixelIdxList{largest}) = true;
    end
    level(level == -1 & ~omega) = steps(i - 1);
  end
  level(level == -1) = 1;
  dp = p - level;
  dt = t - level;
  difference = abs(dp .* (dp >= 0.15) - dt .* (dt >= 0.15));
  scores(k) = sum(double(difference(data.mask{k} ~= 0)));
end
printf('%.9g\\n', scores);
"""


def cells(arrays):
    cell = np.empty((1, len(arrays)), dtype=object)
    for k, array in enumerate(arrays):
        cell[0, k] = array
    return cell


def test_connectivity_is_what_octave_says(mattes, tmp_path):
    if not shutil.which("octave-cli"):
        pytest.skip("needs Octave: apt install octave octave-image")
    if subprocess.run(["octave-cli", "--eval", "pkg load image"], capture_output=True, timeout=60).returncode:
        pytest.skip("needs Octave's image package: apt install octave-image")
    rng = np.random.default_rng(0)
    alpha = mattes["lemur_alpha.png"].squeeze().numpy()
    pred = [mattes[name].squeeze().numpy() for name in list(mattes)[1:]]
    pred, target = [np.rint(p[::2, ::2] * 255) for p in pred], [np.rint(alpha[::2, ::2] * 255)] * 3
    for size in [(1, 1), (1, 7), (6, 1), (7, 9), (12, 12), (24, 31)]:
        pred.append(rng.choice(LEVELS, size))
        target.append(rng.choice(LEVELS, size))
        pred.append(ndimage.uniform_filter(rng.integers(0, 256, size), 3))
        target.append(np.clip(pred[-1] + rng.integers(-40, 41, size), 0, 255))
    mask = [rng.random(p.shape) < 0.7 for p in pred]
    matlab.savemat(tmp_path / "mattes.mat", {"pred": cells(pred), "target": cells(target), "mask": cells(mask)})
    (tmp_path / "run.m").write_text(OCTAVE)
    done = subprocess.run(["octave-cli", "run.m"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    expected = [float(line) for line in done.stdout.split()]
    assert len(expected) == len(pred), done.stderr
    for p, t, m, value in zip(pred, target, mask, expected, strict=True):
        p, t = (torch.from_numpy(matte.astype(np.float32)) / 255 for matte in (p, t))
        assert 1000 * connectivity_error(p, t, mask=torch.from_numpy(m)) == pytest.approx(value, rel=1e-6, abs=1e-5)


# --- gradient ----------------------------------------------------------------------------------------------


def gradient_by_scipy(pred, target, stretch, mask):
    x = np.arange(-4, 5)
    gauss = np.exp(-(x**2) / (2 * 1.4**2)) / (1.4 * math.sqrt(2 * math.pi))
    kernel = np.outer(gauss, -x * gauss / 1.4**2)
    kernel /= np.sqrt((kernel**2).sum())
    lengths = []
    for matte in (pred, target):
        if stretch and np.ptp(matte) > 0:
            matte = (matte - matte.min()) / np.ptp(matte)
        across, down = (ndimage.convolve(matte, k, mode="nearest") for k in (kernel, kernel.T))
        lengths.append(np.sqrt(across**2 + down**2))
    return ((lengths[0] - lengths[1]) ** 2)[mask].sum() / 1000


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(1, 20), st.booleans())
def test_gradient_is_as_defined(seed, height, width, stretch):
    rng = np.random.default_rng(seed)
    pred, target = ndimage.gaussian_filter(rng.random((2, height, width)), (0, 1, 1))
    mask = rng.random((height, width)) < 0.8
    found = gradient_error(*map(torch.from_numpy, (pred, target)), stretch=stretch, mask=torch.from_numpy(mask))
    assert found == pytest.approx(gradient_by_scipy(pred, target, stretch, mask), rel=1e-9, abs=1e-15)


def test_stretching():
    edge = torch.zeros(1, 1, 20, 20)
    edge[..., 10:] = 1
    assert gradient_error(0.2 + 0.5 * edge, edge) == pytest.approx(0, abs=1e-12)
    assert gradient_error(0.2 + 0.5 * edge, edge, stretch=False) > 1e-3
    flat = torch.full((1, 1, 20, 20), 0.7)
    assert gradient_error(flat, flat * 0.5) == 0  # constant mattes have no gradient
    assert gradient_error(flat, edge) == gradient_error(0 * flat, edge) > 0
    assert gradient_error(torch.tensor([[0.3]]), torch.tensor([[0.9]])) == 0  # one pixel


def test_the_filters_have_nine_weights():  # a tenth pixel is not seen
    impulse = torch.zeros(21, 21)
    impulse[10, 10] = 1
    seen = torch.zeros(21, 21, dtype=torch.bool)
    seen[6:15, 6:15] = True
    zero = torch.zeros(21, 21)
    assert gradient_error(impulse, zero, stretch=False, mask=~seen) == 0
    edge = seen.clone()
    edge[7:14, 7:14] = False
    assert gradient_error(impulse, zero, stretch=False, mask=edge) > 0
    assert gradient_error(impulse, zero, stretch=False) == pytest.approx(2e-3)  # two filters of unit norm


@pytest.mark.parametrize("stretch", [True, False])
def test_gradient_error_is_differentiable(stretch):
    rng = torch.Generator().manual_seed(0)
    pred, target = torch.rand(2, 2, 1, 5, 6, generator=rng, dtype=torch.float64) * 0.8 + 0.1
    pred.requires_grad_()
    assert torch.autograd.gradcheck(lambda p: gradient_error(p, target, stretch=stretch, reduction="none"), pred)
    constant = torch.full((1, 1, 5, 6), 0.5, requires_grad=True)
    gradient_error(constant, target[:1].float(), stretch=stretch).backward()
    assert constant.grad.isfinite().all()


# --- both ---------------------------------------------------------------------------------------------------

BOTH = [
    gradient_error,
    connectivity_error,
    lambda *images, **more: connectivity_error(*images, variant="python", **more),
]


@pytest.mark.parametrize("function", BOTH)
def test_batches_masks_and_symmetry(function):
    pred, target = torch.rand(2, 3, 1, 9, 11, generator=torch.Generator().manual_seed(0)).mul(255).round() / 255
    mask = torch.rand(3, 1, 9, 11, generator=torch.Generator().manual_seed(1)) < 0.5
    each = function(pred, target, mask=mask, reduction="none")
    assert each.shape == (3,) and each.dtype == torch.float64
    for k in range(3):
        assert function(pred[k, 0], target[k, 0], mask=mask[k, 0]) == pytest.approx(each[k].item(), rel=1e-9)
    assert function(pred, target, mask=mask) == pytest.approx(each.mean().item())
    assert function(target, pred) == pytest.approx(function(pred, target)) and function(pred, pred) == 0
    halves = [function(pred, target, mask=half) for half in (mask[:1], ~mask[:1])]  # one mask for all three
    assert sum(halves) == pytest.approx(function(pred, target))
    assert function(pred, target, mask=torch.zeros_like(mask)) == 0


@pytest.mark.parametrize("function", BOTH[:2])
def test_a_turned_pair_scores_the_same(function):
    """No direction is preferred; regions of one size, whose order is by columns, do not occur here."""
    rng = torch.Generator().manual_seed(0)
    target = torch.from_numpy(ndimage.gaussian_filter(torch.rand(30, 30, generator=rng).numpy(), 2) * 2).clamp(0, 1)
    pred = (target + 0.3 * torch.rand(30, 30, generator=rng) - 0.15).clamp(0, 1)
    expected = function(pred, target)
    for turns in (1, 2, 3):
        assert function(pred.rot90(turns), target.rot90(turns)) == pytest.approx(expected, rel=1e-9)
    assert function(pred.flip(1), target.flip(1)) == pytest.approx(expected, rel=1e-9)


def test_worse_mattes_score_worse(mattes):
    alpha = mattes["lemur_alpha.png"]
    for function in BOTH[:2]:
        scores = [function(alpha.roll(shift, -1), alpha) for shift in (0, 1, 3, 6)]
        assert scores[0] == 0 and scores == sorted(scores)


def test_registered():
    pred, target = torch.rand(2, 2, 1, 8, 8)
    for name, function in zip(("gradient_error", "connectivity_error", "connectivity_error_python"), BOTH, strict=True):
        entry = metrics.metric(name)
        assert entry.of == "matte" and entry.takes == "pair" and not entry.higher_is_better
        assert entry(pred, target).tolist() == function(pred, target, reduction="none").tolist()


def test_bool_mattes_are_welcome():
    mask = torch.rand(8, 8) > 0.5
    for function in BOTH:
        assert function(mask, mask) == 0 and function(mask, ~mask) == function(mask.float(), 1 - mask.float())


@pytest.mark.parametrize("function", BOTH)
@pytest.mark.parametrize(
    ("pred", "target", "more", "message"),
    [
        (torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 5), {}, "one shape"),
        (torch.zeros(3, 4, 4), torch.zeros(3, 4, 4), {}, "mattes: expected one channel, got 3"),
        (torch.zeros(4), torch.zeros(4), {}, r"image: expected \(N, C, H, W\)"),
        (torch.zeros(0, 1, 4, 4), torch.zeros(0, 1, 4, 4), {}, "at least one pixel"),
        (torch.full((4, 4), 1.1), torch.zeros(4, 4), {}, "pred: expected values from 0 to 1"),
        (torch.zeros(4, 4), torch.full((4, 4), math.nan), {}, "target: expected values from 0 to 1"),
        (torch.zeros(4, 4), torch.zeros(4, 4), {"mask": torch.ones(4, 4)}, "mask: expected bool"),
        (torch.zeros(4, 4), torch.zeros(4, 4), {"mask": torch.ones(3, 4) > 0}, "mask: expected the size"),
        (torch.zeros(4, 4), torch.zeros(4, 4), {"reduction": "sum"}, "reduction: expected mean or none"),
    ],
)
def test_bad_input(function, pred, target, more, message):
    with pytest.raises(I2IError, match=message):
        function(pred, target, **more)


def test_bad_options():
    x = torch.zeros(4, 4)
    with pytest.raises(I2IError, match="variant: expected matlab or python, got 'octave'"):
        connectivity_error(x, x, variant="octave")
    for step in (0, -0.1, 0.3, 1.5, math.nan):
        with pytest.raises(I2IError, match="step: expected a whole part of 1"):
            connectivity_error(x, x, step=step)
