"""Image metrics, one file a family; each says its variant, range and direction. ``paired`` compares two candidates."""

from .interval import Paired, paired
from .matte import iou, mse

__all__ = ["Paired", "iou", "mse", "paired"]
