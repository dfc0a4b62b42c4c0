"""The networks of AMD's model zoo, from their papers: functions of one tensor on the meta device, shapes without data.

Frameworks disagree on details, and AMD's zoo keeps each one's variant. So do these: where Caffe strides in the 1x1
convolution of a ResNet, TF-slim does in a stage's last unit, and torchvision in the 3x3.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Network = Callable[[Tensor], object]

# --- building blocks -----------------------------------------------------------------------------


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def conv(x: Tensor, co: int, k: int | tuple[int, int] = 1, s: int = 1, p: int | None = None, d: int = 1) -> Tensor:
    """``co`` filters of side ``k``, stride ``s``, dilation ``d``; padding keeps the size where ``p`` is None."""
    kh, kw = (k, k) if isinstance(k, int) else k
    padding = (d * (kh // 2), d * (kw // 2)) if p is None else p
    return F.conv2d(x, _empty(co, x.shape[1], kh, kw), None, s, padding, d)


def deconv(x: Tensor, co: int, k: int = 2, p: int = 0, op: int = 0) -> Tensor:
    """A transposed convolution of stride 2."""
    return F.conv_transpose2d(x, _empty(x.shape[1], co, k, k), None, 2, p, op)


def linear(x: Tensor, n: int) -> Tensor:
    """A fully connected layer over all values."""
    x = x.flatten(1)
    return F.linear(x, _empty(n, x.shape[1]))


def chain(x: Tensor, *steps: tuple) -> Tensor:
    """Convolutions in a row, each given by the arguments of :func:`conv`."""
    return functools.reduce(lambda x, step: conv(x, *step), steps, x)


def cat(*xs: Tensor) -> Tensor:
    """Channels side by side."""
    return torch.cat(xs, 1)


def pool(x: Tensor, k: int = 2, s: int = 2, p: int = 0) -> Tensor:
    """Max pooling that rounds sizes up, as Caffe does."""
    return F.max_pool2d(x, k, s, p, ceil_mode=True)


def smooth(x: Tensor) -> Tensor:
    """Average pooling 3x3, stride 1."""
    return F.avg_pool2d(x, 3, 1, 1)


def classify(x: Tensor, classes: int = 1000) -> Tensor:
    """Mean over the map, then a fully connected layer."""
    return linear(F.adaptive_avg_pool2d(x, 1), classes)


# --- classification ------------------------------------------------------------------------------


def resnet_stages(x: Tensor, units: tuple[int, ...], *, bottleneck: bool = True, stride: str = "3x3") -> list[Tensor]:
    """He et al., CVPR 2016; ``stride``: in which convolution of a stage's first unit, or "last": in its last unit."""
    x, stages = F.max_pool2d(conv(x, 64, 7, 2), 3, 2, 1), []
    for level, n in enumerate(units):
        width = 64 << level
        co = 4 * width if bottleneck else width
        for i in range(n):
            down = (level < 3 and i == n - 1) if stride == "last" else (level > 0 and i == 0)
            s = 2 if down else 1
            if bottleneck:
                first, second = (s, 1) if stride == "1x1" else (1, s)
                y = chain(x, (width, 1, first), (width, 3, second), (co,))
            else:
                y = chain(x, (co, 3, s), (co, 3))
            if x.shape[1] != co:
                x = conv(x, co, 1, s)
            elif s == 2:
                x = F.max_pool2d(x, 1, 2)
            x = x + y
        stages.append(x)
    return stages


def resnet(*units: int, classes: int = 1000, **form) -> Network:
    """The stages of :func:`resnet_stages` and a classifier."""
    return lambda x: classify(resnet_stages(x, units, **form)[-1], classes)


_INCEPTION_1 = (  # filters of 1x1; 3x3 reduced, 3x3; 5x5 reduced, 5x5; after pooling. None: a pooling
    *((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64), None),
    *((192, 96, 208, 16, 48, 64), (160, 112, 224, 24, 64, 64), (128, 128, 256, 24, 64, 64)),
    *((112, 144, 288, 32, 64, 64), (256, 160, 320, 32, 128, 128), None),
    *((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)


def inception1_stages(x: Tensor, k: int = 5) -> list[Tensor]:
    """GoogLeNet, Szegedy et al., CVPR 2015; TensorFlow's variant has 3x3 (``k``) where the paper has 5x5."""
    x = pool(conv(x, 64, 7, 2), 3, 2)
    stages = [chain(x, (64,), (192, 3))]
    x = pool(stages[0], 3, 2)
    for block in _INCEPTION_1:
        if block is None:
            stages.append(x)
            x = pool(x, 3, 2)
        else:
            a, b1, b2, c1, c2, d = block
            x = cat(conv(x, a), chain(x, (b1,), (b2, 3)), chain(x, (c1,), (c2, k)), conv(pool(x, 3, 1, 1), d))
    return [*stages, x]


def inception2(x: Tensor) -> Tensor:
    """BN-Inception, Ioffe and Szegedy, ICML 2015, table 5 (figure 5 of the preprint)."""

    def block(x, a, b1, b2, c1, c2, d, mean=True):
        after = smooth(x) if mean else pool(x, 3, 1, 1)
        return cat(conv(x, a), chain(x, (b1,), (b2, 3)), chain(x, (c1,), (c2, 3), (c2, 3)), conv(after, d))

    def shrink(x, b1, b2, c1, c2):
        return cat(chain(x, (b1,), (b2, 3, 2)), chain(x, (c1,), (c2, 3), (c2, 3, 2)), pool(x, 3, 2))

    x = pool(chain(pool(conv(x, 64, 7, 2), 3, 2), (64,), (192, 3)), 3, 2)
    x = block(block(x, 64, 64, 64, 64, 96, 32), 64, 64, 96, 64, 96, 64)
    x = block(shrink(x, 128, 160, 64, 96), 224, 64, 96, 96, 128, 128)
    x = block(block(x, 192, 96, 128, 96, 128, 128), 160, 128, 160, 128, 160, 128)
    x = shrink(block(x, 96, 128, 192, 160, 192, 128), 128, 192, 192, 256)
    return classify(block(block(x, 352, 192, 320, 160, 224, 128), 352, 192, 320, 192, 224, 128, mean=False))


def _stem(x: Tensor) -> Tensor:
    return chain(x, (32, 3, 2, 0), (32, 3, 1, 0), (64, 3))


def _shrink(x: Tensor, *branches: tuple) -> Tensor:
    """Branches that end in a 3x3 convolution of stride 2, and a pooling; none padded there."""
    return cat(*(chain(x, *steps[:-1], (steps[-1], 3, 2, 0)) for steps in branches), F.max_pool2d(x, 3, 2))


def inception3(x: Tensor) -> Tensor:
    """Inception v3, Szegedy et al., CVPR 2016."""
    x = F.max_pool2d(_stem(x), 3, 2)
    x = F.max_pool2d(chain(x, (80,), (192, 3, 1, 0)), 3, 2)
    for d in (32, 64, 64):
        x = cat(conv(x, 64), chain(x, (48,), (64, 5)), chain(x, (64,), (96, 3), (96, 3)), conv(smooth(x), d))
    x = _shrink(x, (384,), ((64,), (96, 3), 96))
    for c in (128, 160, 160, 192):
        long = chain(x, (c,), (c, (7, 1)), (c, (1, 7)), (c, (7, 1)), (192, (1, 7)))
        x = cat(conv(x, 192), chain(x, (c,), (c, (1, 7)), (192, (7, 1))), long, conv(smooth(x), 192))
    x = _shrink(x, ((192,), 320), ((192,), (192, (1, 7)), (192, (7, 1)), 192))
    for _ in range(2):
        b, c = conv(x, 384), chain(x, (448,), (384, 3))
        sides = (conv(branch, 384, k) for branch in (b, c) for k in ((1, 3), (3, 1)))
        x = cat(conv(x, 320), *sides, conv(smooth(x), 192))
    return classify(x)


def inception4(x: Tensor) -> Tensor:
    """Inception v4, Szegedy et al., AAAI 2017."""
    x = _stem(x)
    x = cat(F.max_pool2d(x, 3, 2), conv(x, 96, 3, 2, 0))
    x = cat(chain(x, (64,), (96, 3, 1, 0)), chain(x, (64,), (64, (7, 1)), (64, (1, 7)), (96, 3, 1, 0)))
    x = cat(conv(x, 192, 3, 2, 0), F.max_pool2d(x, 3, 2))
    for _ in range(4):
        x = cat(conv(smooth(x), 96), conv(x, 96), chain(x, (64,), (96, 3)), chain(x, (64,), (96, 3), (96, 3)))
    x = _shrink(x, (384,), ((192,), (224, 3), 256))
    for _ in range(7):
        long = chain(x, (192,), (192, (1, 7)), (224, (7, 1)), (224, (1, 7)), (256, (7, 1)))
        x = cat(conv(smooth(x), 128), conv(x, 384), chain(x, (192,), (224, (1, 7)), (256, (7, 1))), long)
    x = _shrink(x, ((192,), 192), ((256,), (256, (1, 7)), (320, (7, 1)), 320))
    for _ in range(3):
        b, c = conv(x, 384), chain(x, (384,), (448, (1, 3)), (512, (3, 1)))
        sides = (conv(branch, 256, k) for branch in (b, c) for k in ((1, 3), (3, 1)))
        x = cat(conv(smooth(x), 256), conv(x, 256), *sides)
    return classify(x)


def inception_resnet2(x: Tensor) -> Tensor:
    """Inception-ResNet v2, Szegedy et al., AAAI 2017, with TF-slim's stem and widths."""
    x = F.max_pool2d(_stem(x), 3, 2)
    x = F.max_pool2d(chain(x, (80,), (192, 3, 1, 0)), 3, 2)
    x = cat(conv(x, 96), chain(x, (48,), (64, 5)), chain(x, (64,), (96, 3), (96, 3)), conv(smooth(x), 64))
    for _ in range(10):
        x = x + conv(cat(conv(x, 32), chain(x, (32,), (32, 3)), chain(x, (32,), (48, 3), (64, 3))), 320)
    x = _shrink(x, (384,), ((256,), (256, 3), 384))
    for _ in range(20):
        x = x + conv(cat(conv(x, 192), chain(x, (128,), (160, (1, 7)), (192, (7, 1)))), 1088)
    x = _shrink(x, ((256,), 384), ((256,), 288), ((256,), (288, 3), 320))
    for _ in range(10):
        x = x + conv(cat(conv(x, 192), chain(x, (192,), (224, (1, 3)), (256, (3, 1)))), 2080)
    return classify(conv(x, 1536))


def vgg(*depths: int) -> Network:
    """Simonyan and Zisserman, ICLR 2015."""

    def run(x: Tensor) -> Tensor:
        for width, n in zip((64, 128, 256, 512, 512), depths, strict=True):
            x = pool(chain(x, *[(width, 3)] * n))
        return linear(linear(linear(x, 4096), 4096), 1000)

    return run


def squeezenet(x: Tensor) -> Tensor:
    """SqueezeNet 1.1, Iandola et al., 2016, and its authors' release."""

    def fire(x, s, e):
        x = conv(x, s)
        return cat(conv(x, e), conv(x, e, 3))

    x = pool(conv(x, 64, 3, 2, 0), 3, 2)
    for s, e, last in ((16, 64, 0), (16, 64, 1), (32, 128, 0), (32, 128, 1), (48, 192, 0), (48, 192, 0)):
        x = pool(fire(x, s, e), 3, 2) if last else fire(x, s, e)
    return F.adaptive_avg_pool2d(conv(fire(fire(x, 64, 256), 64, 256), 1000), 1)


def sphereface(*units: int) -> Network:
    """Liu et al., SphereFace, CVPR 2017, table 2."""

    def run(x: Tensor) -> Tensor:
        for width, n in zip((64, 128, 256, 512), units, strict=True):
            x = conv(x, width, 3, 2)
            for _ in range(n):
                x = x + chain(x, (width, 3), (width, 3))
        return linear(x, 512)

    return run


# --- detection -----------------------------------------------------------------------------------


def double(x: Tensor) -> Tensor:
    """Nearest neighbour, twice as large."""
    return F.interpolate(x, scale_factor=2)


def yolo2(classes: int) -> Network:
    """YOLO v2, Redmon and Farhadi, CVPR 2017, with Darknet's 64 filters before the reorganisation."""

    def run(x: Tensor) -> Tensor:
        x = pool(conv(pool(conv(x, 32, 3)), 64, 3))
        for width, n in ((128, 3), (256, 3), (512, 5), (1024, 5)):
            x = chain(x, *((width >> i % 2, 1 if i % 2 else 3) for i in range(n)))
            if width == 512:
                side = F.pixel_unshuffle(conv(x, 64), 2)
            x = pool(x) if width < 1024 else x
        return chain(cat(side, chain(x, (1024, 3), (1024, 3))), (1024, 3), (5 * (5 + classes),))

    return run


def _five(x: Tensor, width: int) -> Tensor:
    return chain(x, *((width << i % 2, 3 if i % 2 else 1) for i in range(5)))


def yolo3(classes: int) -> Network:
    """YOLO v3, Redmon and Farhadi, 2018."""
    out = 3 * (5 + classes)

    def run(x: Tensor) -> list[Tensor]:
        x, stages, found = conv(x, 32, 3), [], []
        for width, n in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
            x = conv(x, width, 3, 2)
            for _ in range(n):
                x = x + chain(x, (width // 2,), (width, 3))
            stages.append(x)
        x = stages.pop()
        for width in (512, 256, 128):
            x = _five(x, width)
            found.append(chain(x, (2 * width, 3), (out,)))
            x = cat(double(conv(x, width // 2)), stages.pop()) if width > 128 else x
        return found

    return run


def tiny_yolo3(classes: int) -> Network:
    """Tiny YOLO v3, of the same authors' Darknet."""
    out = 3 * (5 + classes)

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        for width in (16, 32, 64, 128):
            x = pool(conv(x, width, 3))
        side = conv(x, 256, 3)
        x = F.max_pool2d(F.pad(conv(pool(side), 512, 3), (0, 1, 0, 1)), 2, 1)
        x = chain(x, (1024, 3), (256,))
        return chain(x, (512, 3), (out,)), chain(cat(double(conv(x, 128)), side), (256, 3), (out,))

    return run


def yolo4(classes: int) -> Network:
    """YOLO v4, Bochkovskiy et al., 2020: CSPDarknet-53, spatial pyramid pooling, path aggregation."""
    out = 3 * (5 + classes)

    def run(x: Tensor) -> tuple[Tensor, ...]:
        x, stages = conv(x, 32, 3), []
        for width, n in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
            x = conv(x, width, 3, 2)
            half = max(64, width // 2)
            side, y = conv(x, half), conv(x, half)
            for _ in range(n):
                y = y + chain(y, (width // 2,), (half, 3))
            x = conv(cat(conv(y, half), side), width)
            stages.append(x)
        *_, a, b, c = stages
        c = chain(c, (512,), (1024, 3), (512,))
        c = chain(cat(*(F.max_pool2d(c, k, 1, k // 2) for k in (13, 9, 5)), c), (512,), (1024, 3), (512,))
        b = _five(cat(conv(b, 256), double(conv(c, 256))), 256)
        a = _five(cat(conv(a, 128), double(conv(b, 128))), 128)
        b = _five(cat(conv(a, 256, 3, 2), b), 256)
        c = _five(cat(conv(b, 512, 3, 2), c), 512)
        return tuple(chain(x, (2 * x.shape[1], 3), (out,)) for x in (a, b, c))

    return run


# --- images to images ----------------------------------------------------------------------------


def unet(widths: tuple[int, ...], ups: tuple[int, ...], classes: int) -> Network:
    """Ronneberger et al., MICCAI 2015, padded; ``ups``: filters of the transposed convolutions, deepest first."""

    def run(x: Tensor) -> Tensor:
        skips = []
        for width in widths[:-1]:
            x = chain(x, (width, 3), (width, 3))
            skips.append(x)
            x = pool(x)
        x = chain(x, (widths[-1], 3), (widths[-1], 3))
        for width, up in zip(widths[-2::-1], ups, strict=True):
            x = chain(cat(deconv(x, up), skips.pop()), (width, 3), (width, 3))
        return conv(x, classes)

    return run


def erfnet(x: Tensor) -> Tensor:
    """ERFNet, Romera et al., IEEE T-ITS 2018; 20 classes."""

    def shrink(x, co):
        return cat(conv(x, co - x.shape[1], 3, 2), pool(x))

    def unit(x, d=1):
        c = x.shape[1]
        y = chain(x, (c, (3, 1)), (c, (1, 3)))
        y = F.conv2d(y, _empty(c, c, 3, 1), None, 1, (d, 0), d)
        return x + F.conv2d(y, _empty(c, c, 1, 3), None, 1, (0, d), d)

    x = shrink(shrink(x, 16), 64)
    for d in (1,) * 5:
        x = unit(x, d)
    x = shrink(x, 128)
    for d in (2, 4, 8, 16) * 2:
        x = unit(x, d)
    for width in (64, 16):
        x = unit(unit(deconv(x, width, 3, 1, 1)))
    return deconv(x, 20, 3, 1, 1)


def enet(x: Tensor) -> Tensor:
    """ENet, Paszke et al., 2016, table 1, with transposed convolutions for its unpooling; 19 classes."""

    def unit(x, form=1):  # a dilation, "5x1", or ("down" | "up", filters out)
        way, co = form if isinstance(form, tuple) else (form, x.shape[1])
        c = (x.shape[1] if way == "up" else co) // 4
        if way == "up":
            return deconv(conv(x, co), co) + conv(deconv(conv(x, c), c), co)
        y = conv(x, c, 2, 2, 0) if way == "down" else conv(x, c)
        y = chain(y, (c, (5, 1)), (c, (1, 5))) if way == "5x1" else conv(y, c, 3, d=way if way != "down" else 1)
        if way == "down":
            x = pool(x)
            x = cat(x, _empty(1, co - x.shape[1], *x.shape[2:]))
        return x + conv(y, co)

    x = cat(conv(x, 13, 3, 2), pool(x))
    forms = [("down", 64), 1, 1, 1, 1, ("down", 128)]
    forms += [1, 2, "5x1", 4, 1, 8, "5x1", 16] * 2
    for form in [*forms, ("up", 64), 1, 1, ("up", 16), 1]:
        x = unit(x, form)
    return deconv(x, 19)


def fpn_inception(x: Tensor) -> Tensor:
    """A feature pyramid of 32 filters (Lin et al., CVPR 2017) on GoogLeNet; 19 classes."""
    c2, c3, c4, c5 = inception1_stages(x)
    p = conv(c5, 32)
    for c in (c4, c3):
        p = conv(deconv(p, 32, 4, 1) + conv(c, 32), 32, 3)
    return deconv(deconv(p, 32, 4, 1) + conv(c2, 32), 19, 4, 1)


def fpn_resnet(x: Tensor) -> Tensor:
    """A light feature pyramid of 19 filters, one a class, on ResNet-18."""
    *sides, c5 = resnet_stages(x, (2, 2, 2, 2), bottleneck=False)
    x = conv(c5, 19, 3)
    for c in reversed(sides):
        x = deconv(x, 19) + (chain(c, (19, 3), (19, 3)) + conv(c, 19))
        x = conv(x, 19, 3) + x
    return deconv(deconv(x, 19), 19)
