"""A stand-in with AMD's pytorch_nndct's interface: records calls, refuses what AMD's refuses, rounds by our rules."""

__version__ = "0.0-standin"


def __getattr__(name):  # as light to import as may be
    if name == "QatProcessor":
        from .qat import QatProcessor

        return QatProcessor
    raise AttributeError(name)
