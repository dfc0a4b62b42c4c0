"""AlexNet, ZFNet, VGG16 and Tiny-YOLO: the networks on which accelerator papers compare themselves."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import I2IError


class AlexNet(nn.Module):
    """AlexNet with one tower, for (N, 3, 224, 224).

    Source: Krizhevsky, "One weird trick for parallelizing convolutional neural networks", arXiv:1404.5997.
    """

    side = 224

    def __init__(self, classes: int = 1000):
        super().__init__()
        self.features = nn.Sequential(
            *_conv(3, 64, 11, 4, 2), nn.MaxPool2d(3, 2), *_conv(64, 192, 5, 1, 2), nn.MaxPool2d(3, 2),
            *_conv(192, 384), *_conv(384, 256), *_conv(256, 256), nn.MaxPool2d(3, 2),
        )  # fmt: skip
        self.classifier = _classifier(256 * 6 * 6, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Scores (N, classes)."""
        return self.classifier(self.features(x).flatten(1))


class ZFNet(AlexNet):
    """ZFNet for (N, 3, 224, 224), without its contrast normalisation, which has no weights.

    Source: Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", arXiv:1311.2901, Fig. 3.
    """

    def __init__(self, classes: int = 1000):
        nn.Module.__init__(self)
        self.features = nn.Sequential(
            *_conv(3, 96, 7, 2, 1), nn.MaxPool2d(3, 2, 1), *_conv(96, 256, 5, 2, 0), nn.MaxPool2d(3, 2, 1),
            *_conv(256, 384), *_conv(384, 384), *_conv(384, 256), nn.MaxPool2d(3, 2),
        )  # fmt: skip
        self.classifier = _classifier(256 * 6 * 6, classes)


class VGG16(AlexNet):
    """VGG16 for (N, 3, 224, 224).

    Source: Simonyan and Zisserman, arXiv:1409.1556, configuration D.
    """

    def __init__(self, classes: int = 1000):
        nn.Module.__init__(self)
        layers, ci = [], 3
        for co, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for _ in range(count):
                layers += _conv(ci, co)
                ci = co
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = _classifier(512 * 7 * 7, classes)


class TinyYOLO(nn.Module):
    """Tiny-YOLO, second version, for (N, 3, 416, 416): nine convolutions, five boxes a cell.

    Source: Redmon and Farhadi, "YOLO9000", arXiv:1612.08242; layers as in ``yolov2-tiny-voc.cfg`` of
    github.com/pjreddie/darknet.
    """

    side = 416

    def __init__(self, classes: int = 20, boxes: int = 5):
        super().__init__()
        layers: list[nn.Module] = []
        for ci, co in ((3, 16), (16, 32), (32, 64), (64, 128), (128, 256)):
            layers += [*self._block(ci, co), nn.MaxPool2d(2)]
        # A pooling of stride 1 that keeps the size: a repeated edge never wins against itself.
        layers += [*self._block(256, 512), nn.ReplicationPad2d((0, 1, 0, 1)), nn.MaxPool2d(2, 1)]
        layers += [*self._block(512, 1024), *self._block(1024, 1024), nn.Conv2d(1024, boxes * (5 + classes), 1)]
        self.features = nn.Sequential(*layers)

    @staticmethod
    def _block(ci: int, co: int) -> list[nn.Module]:
        return [nn.Conv2d(ci, co, 3, padding=1, bias=False), nn.BatchNorm2d(co), nn.LeakyReLU(0.1)]

    def forward(self, x: Tensor) -> Tensor:
        """Boxes (N, boxes * (5 + classes), 13, 13)."""
        return self.features(x)


def _conv(ci: int, co: int, kernel: int = 3, stride: int = 1, padding: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(ci, co, kernel, stride, padding), nn.ReLU()]


def _classifier(values: int, classes: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(values, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, classes))


CLASSIC: dict[str, type[nn.Module]] = {"AlexNet": AlexNet, "ZFNet": ZFNet, "VGG16": VGG16, "Tiny-YOLO": TinyYOLO}


def classic(name: str, *, classifier: bool = False) -> tuple[nn.Module, Tensor]:
    """A network's shapes without weights, and an input for it, both on the meta device.

    Args:
        name: A name in :data:`CLASSIC`.
        classifier: Include the fully connected layers, where there are any.

    Returns:
        The module in evaluation mode, and a tensor (1, 3, side, side).

    Raises:
        I2IError: If the name is unknown.

    Example:
        >>> network, x = classic("ZFNet")
        >>> tuple(network(x).shape)
        (1, 256, 6, 6)
    """
    if name not in CLASSIC:
        raise I2IError("network", expected=" or ".join(CLASSIC), got=repr(name))
    with torch.device("meta"):
        network = CLASSIC[name]().eval()
        x = torch.empty(1, 3, network.side, network.side)
    return network if classifier else network.features, x
