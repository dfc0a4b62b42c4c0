"""Training: one loop, one checkpoint format; tasks plug in."""

from .loop import History, Task, fit
from .matting import MattingConfig, MattingData, MattingTask, matting_config, train_matting
from .restoration import RestorationConfig, RestorationData, RestorationTask, restoration_config, train_restoration

__all__ = [
    "History",
    "MattingConfig",
    "MattingData",
    "MattingTask",
    "RestorationConfig",
    "RestorationData",
    "RestorationTask",
    "Task",
    "fit",
    "matting_config",
    "restoration_config",
    "train_matting",
    "train_restoration",
]
