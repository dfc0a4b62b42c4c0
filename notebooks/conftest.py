"""How nbval runs the notebooks: the smallest preset, figures inline as readers see them, only facts compared."""

import os

os.environ.setdefault("I2I_PRESET", "smoke")  # the kernels inherit both
os.environ.pop("MPLBACKEND", None)  # any value keeps the kernel from showing figures inline


def pytest_collectstart(collector):
    if hasattr(collector, "skip_compare"):  # a notebook; another version's warning or table style is no failure
        collector.skip_compare += ("stderr", "text/html", "image/svg+xml")
