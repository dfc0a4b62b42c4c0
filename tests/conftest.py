"""Shared fixtures: reference data outside the repository (skipped where absent) and a quiet, small preset."""

import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

os.environ.setdefault("I2I_PRESET", "smoke")

collect_ignore = ["standins"]  # no tests: modules that stand in for libraries, for whom the test chooses

REFERENCE = Path(__file__).resolve().parents[2] / "shared"


def shared(name: str) -> Path:
    """A folder or file of reference data beside the checkout; skips the test where it is not there."""
    path = REFERENCE / name
    if not path.exists():
        pytest.skip(f"reference data not beside this checkout: shared/{name}")
    return path


@pytest.fixture(autouse=True)
def own_figures():
    """A test's figures end with it; it begins with Matplotlib's own settings, whatever fixture or test came before."""
    with plt.rc_context():
        plt.rcdefaults()  # fixtures of a module are older than this one, and ``start`` sets the house style
        yield
    plt.close("all")


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """Four frames of noise in the VideoMatte240K layout; two of them for training, five patches each."""
    root, rng = tmp_path_factory.mktemp("clip"), np.random.default_rng(0)
    for kind in ("fgr/walk", "pha/walk", "bgr"):
        (root / "train" / kind).mkdir(parents=True)
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (256, 512, 3), dtype=np.uint8)).save(root / f"train/fgr/walk/{i}.png")
        alpha = Image.new("L", (512, 256))
        alpha.paste(255, (30 * i, 50, 30 * i + 250, 200))
        alpha.save(root / f"train/pha/walk/{i}.png")
    Image.new("RGB", (512, 256), (0, 0, 60)).save(root / "train/bgr/walk.png")
    return root
