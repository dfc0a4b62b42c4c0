"""Image-to-image networks, from a float model to an accelerator.

``import i2ilib`` is light: heavy libraries load with the module that needs them.
"""

from .errors import FrameError, I2IError, IntegrityError, UnavailableError
from .runtime import Run, available, start

__version__ = "0.1.0"
__all__ = ["FrameError", "I2IError", "IntegrityError", "Run", "UnavailableError", "__version__", "available", "start"]
