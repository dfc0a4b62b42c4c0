"""Interactive views for JupyterLab. Each is a shell over a plain function that works without a front end."""

from .fcad import FcadExplorer, FcadView, fcad_explorer, fcad_picture, fcad_view
from .fixed_point import FixedPointExplorer, FixedPointView, fixed_point_explorer, fixed_point_view
from .metrics import (
    ChoicePair,
    ForcedChoice,
    MetricExplorer,
    MetricView,
    agreement,
    choice_pairs,
    metric_explorer,
    metric_picture,
    metric_view,
)
from .quantisation import (
    CalibrationView,
    CalibrationWidget,
    PositionView,
    PositionWidget,
    calibration_view,
    calibration_widget,
    position_view,
    position_widget,
)
from .u50 import U50View, U50Widget, u50_view, u50_widget

__all__ = [
    "CalibrationView",
    "CalibrationWidget",
    "ChoicePair",
    "FcadExplorer",
    "FcadView",
    "FixedPointExplorer",
    "FixedPointView",
    "ForcedChoice",
    "MetricExplorer",
    "MetricView",
    "PositionView",
    "PositionWidget",
    "U50View",
    "U50Widget",
    "agreement",
    "calibration_view",
    "calibration_widget",
    "choice_pairs",
    "fcad_explorer",
    "fcad_picture",
    "fcad_view",
    "fixed_point_explorer",
    "fixed_point_view",
    "metric_explorer",
    "metric_picture",
    "metric_view",
    "position_view",
    "position_widget",
    "u50_view",
    "u50_widget",
]
