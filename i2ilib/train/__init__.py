"""Training: one loop, one checkpoint format; tasks plug in."""

from .loop import Task, fit
from .matting import MattingConfig, MattingTask, clip_batches, train_matting

__all__ = ["MattingConfig", "MattingTask", "Task", "clip_batches", "fit", "train_matting"]
