"""Training: one loop, one checkpoint format; tasks plug in."""

from .loop import History, Task, fit
from .matting import MattingConfig, MattingData, MattingTask, matting_config, train_matting

__all__ = ["History", "MattingConfig", "MattingData", "MattingTask", "Task", "fit", "matting_config", "train_matting"]
