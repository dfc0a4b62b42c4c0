"""Image metrics, one file a family; each says its variant, range and direction."""

from .matte import iou, mse

__all__ = ["iou", "mse"]
