"""Training: one loop, one checkpoint format; tasks plug in."""

from .loop import Task, fit
from .matting import MattingConfig, MattingTask

__all__ = ["MattingConfig", "MattingTask", "Task", "fit"]
