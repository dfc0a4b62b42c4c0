"""F-CAD in the open: from a network with branches to an accelerator of layer-based pipelines.

Analysis, construction, optimisation and evaluation after Zhang et al., "F-CAD: A Framework to Explore Hardware
Accelerators for Codec Avatar Decoding" (DAC 2021), with the readings that its tables decide. Only analysis needs
PyTorch, and loads it when it is called.
"""

from .construct import Config, DesignSpace, construct
from .cost import Budget, evaluate
from .graph import Graph, analyse
from .optimum import optimum
from .pareto import fastest, refresh
from .platforms import PLATFORMS
from .rewrite import fold
from .search import search
from .simulate import simulate

__all__ = [
    "PLATFORMS",
    "Budget",
    "Config",
    "DesignSpace",
    "Graph",
    "analyse",
    "construct",
    "evaluate",
    "fastest",
    "fold",
    "optimum",
    "refresh",
    "search",
    "simulate",
]
