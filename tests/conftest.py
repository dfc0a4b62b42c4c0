"""Shared fixtures: reference data outside the repository (skipped where absent) and a quiet, small preset."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("I2I_PRESET", "smoke")

REFERENCE = Path(__file__).resolve().parents[2] / "shared"


def shared(name: str) -> Path:
    """A folder or file of reference data beside the checkout; skips the test where it is not there."""
    path = REFERENCE / name
    if not path.exists():
        pytest.skip(f"reference data not beside this checkout: shared/{name}")
    return path
