"""The cycle model judged: networks whose throughput on the Alveo U50 was published, and how close the model comes.

AMD's Vitis AI 1.3 model zoo lists images a second, end to end with many threads, on the U50 (6 engines, 300 MHz) and
the U50LV (9 engines, 275 MHz). A network counts only if the layers rebuilt from its paper
(:mod:`i2ilib.deploy.zoo_networks`) have, when traced, the operations that AMD lists, within 3 %.

The networks are sorted by their listed operations; every second one is used to fit the model's three constants, the
others are held out. The U50LV and the paper's pix2pix are never fitted to. The form of the model, however, was chosen
with all of them in sight.
"""

from __future__ import annotations

import functools

import pandas as pd
import torch

from ..errors import I2IError
from ..models import Generator
from ..runtime import DATA
from . import zoo_networks as nets
from .cycles import CONSTANTS, U50, U50LV, Constants, estimate, fit
from .layers import Layer, layers
from .published import table

TOLERANCE = 0.03  # of the listed operations

ZOO: dict[str, tuple[nets.Network, int, int]] = {  # by AMD's name: network, height, width
    "cf_resnet18_imagenet_224_224_3.65G": (nets.resnet(2, 2, 2, 2, bottleneck=False), 224, 224),
    "cf_resnet50_imagenet_224_224_7.7G": (nets.resnet(3, 4, 6, 3, stride="1x1"), 224, 224),
    "cf_inceptionv1_imagenet_224_224_3.16G": (lambda x: nets.classify(nets.inception1_stages(x)[-1]), 224, 224),
    "cf_inceptionv2_imagenet_224_224_4G": (nets.inception2, 224, 224),
    "cf_inceptionv3_imagenet_299_299_11.4G": (nets.inception3, 299, 299),
    "cf_inceptionv4_imagenet_299_299_24.5G": (nets.inception4, 299, 299),
    "cf_squeeze_imagenet_227_227_0.76G": (nets.squeezenet, 227, 227),
    "cf_fpn_cityscapes_256_512_8.9G": (nets.fpn_inception, 256, 512),
    "dk_yolov3_bdd_288_512_53.7G": (nets.yolo3(10), 288, 512),
    "dk_yolov3_voc_416_416_65.42G": (nets.yolo3(20), 416, 416),
    "dk_yolov2_voc_448_448_34G": (nets.yolo2(20), 448, 448),
    "cf_facerec-resnet20_112_96_3.5G": (nets.sphereface(1, 2, 4, 1), 112, 96),
    "cf_facerec-resnet64_112_96_11G": (nets.sphereface(3, 8, 16, 3), 112, 96),
    "dk_tiny-yolov3_416_416_5.46G": (nets.tiny_yolo3(20), 416, 416),
    "dk_yolov4_coco_416_416_60.1G": (nets.yolo4(80), 416, 416),
    "tf_inceptionresnetv2_imagenet_299_299_26.35G": (nets.inception_resnet2, 299, 299),
    "tf_inceptionv1_imagenet_224_224_3G": (lambda x: nets.classify(nets.inception1_stages(x, 3)[-1], 1001), 224, 224),
    "tf_resnetv1_50_imagenet_224_224_6.97G": (nets.resnet(3, 4, 6, 3, stride="last"), 224, 224),
    "tf_resnetv1_101_imagenet_224_224_14.4G": (nets.resnet(3, 4, 23, 3, stride="last"), 224, 224),
    "tf_resnetv1_152_imagenet_224_224_21.83G": (nets.resnet(3, 8, 36, 3, stride="last"), 224, 224),
    "tf_vgg16_imagenet_224_224_30.96G": (nets.vgg(2, 2, 3, 3, 3), 224, 224),
    "tf_vgg19_imagenet_224_224_39.28G": (nets.vgg(2, 2, 4, 4, 4), 224, 224),
    "tf_mlperf_resnet50_imagenet_224_224_8.19G": (nets.resnet(3, 4, 6, 3), 224, 224),
    "tf2_2d-unet_nuclei_128_128_5.31G": (nets.unet((32, 64, 128, 256, 512), (128, 64, 32, 16), 1), 128, 128),
    "tf2_erfnet_cityscapes_512_1024_54G": (nets.erfnet, 512, 1024),
    "pt_ENet_cityscapes_512_1024_8.6G": (nets.enet, 512, 1024),
    "pt_SemanticFPN_cityscapes_256_512_10G": (nets.fpn_resnet, 256, 512),
    "pt_unet_chaos-CT_512_512_23.3G": (nets.unet((16, 32, 64, 128, 256), (128, 64, 32, 16), 2), 512, 512),
}

NOT_REBUILT = {
    "cf_refinedet_coco_360_480_123G": "built from RefineDet's paper it has 127 GOP; AMD's own layers were not found",
    "tf_refinedet_VOC_320_320_81.9G": "built from RefineDet's paper it has 76 GOP; AMD's own layers were not found",
    "cf_openpose_aichallenger_368_368_0.3_189.7G": "pruned: how many filters are left was not found",
    "cf_FPN-resnet18_EDD_320_320_45.3G": "the widths of its decoder were not found",
    "pt_FPN-resnet18_covid19-seg_352_352_22.7G": "the widths of its decoder were not found",
    "torchvision_resnet50": "no operations listed; the layers of tf_mlperf_resnet50, at another speed",
}

PIX2PIX = "pix2pix_256_256"  # the paper's row

CONVOLUTIONS_ONLY = {"pt_unet_chaos-CT_512_512_23.3G"}  # AMD's counter for this one sums Conv2d alone
_LABELS = "19 scores a pixel, which the host turns into labels within the measured time: likely, not shown"
WHY = {  # what the model lacks where it is more than 15 % off on a card, as far as the sources tell
    "cf_fpn_cityscapes_256_512_8.9G": _LABELS,
    "pt_ENet_cityscapes_512_1024_8.6G": _LABELS,
    "pt_SemanticFPN_cityscapes_256_512_10G": _LABELS,
    "pt_unet_chaos-CT_512_512_23.3G": "slower than on AMD's smaller ZCU102 (64.8 images a second in the same zoo): "
    "something stands in its way that is no matter of cycles a layer",
    "tf_mlperf_resnet50_imagenet_224_224_8.19G": "half again as many engines gave all ResNet-50 a quarter more only; "
    "torchvision_resnet50, the same layers, ran a tenth faster on both cards",
}


def published() -> pd.DataFrame:
    """AMD's list as printed: one row a network, by its name.

    Returns:
        ``gop`` (1e9 operations an image, two a multiply-accumulate; NaN where none is listed), ``u50`` and ``u50lv``
        (images a second), ``source``.
    """
    rows = pd.read_csv(DATA / "published" / "u50_model_zoo.csv", index_col=0)
    return rows.set_axis(["gop", "u50", "u50lv", "source"], axis=1)


@functools.cache
def traced(name: str) -> tuple[Layer, ...]:
    """The layers of a network of the zoo, or of the paper's generator.

    Args:
        name: A name in :data:`ZOO`, or :data:`PIX2PIX`.

    Raises:
        I2IError: If there is no such network, or it could not be rebuilt; says why.

    Example:
        >>> len(traced("tf_vgg16_imagenet_224_224_30.96G"))
        21
    """
    if name == PIX2PIX:
        with torch.device("meta"):
            return tuple(layers(Generator(), torch.empty(1, 3, 256, 256)))
    if name not in ZOO:
        expected = f"one of {PIX2PIX}, " + ", ".join(ZOO)
        raise I2IError("network", expected=expected, got=NOT_REBUILT.get(name, repr(name)))
    network, height, width = ZOO[name]
    return tuple(layers(network, torch.empty(1, 3, height, width, device="meta")))


def gop(name: str) -> float:
    """Operations of one image by our trace, in 1e9, counted as AMD counted them for this network."""
    skip = "deconv" if name in CONVOLUTIONS_ONLY else None
    return 2e-9 * sum(layer.macs for layer in traced(name) if layer.kind != skip)


def halves() -> tuple[list[str], list[str]]:
    """The usable networks in two halves, fitted and held out: sorted by listed operations, every second to the first.

    Usable is what was rebuilt with the listed operations, within 3 %.
    """
    rows = published()
    usable = [name for name in ZOO if abs(gop(name) / rows.gop[name] - 1) <= TOLERANCE]
    usable.sort(key=lambda name: (rows.gop[name], name))
    return usable[::2], usable[1::2]


def refit() -> Constants:
    """The model's constants, fitted anew to the first half on the U50: :data:`~i2ilib.deploy.cycles.CONSTANTS`."""
    rows = published()
    return fit([(traced(name), rows.u50[name]) for name in halves()[0]], U50)


def judge(constants: Constants = CONSTANTS) -> pd.DataFrame:
    """The model against everything published: AMD's zoo on both cards, and the paper's pix2pix.

    Args:
        constants: Of the model.

    Returns:
        One row a network, by its name. ``half``: "fitted", "held out", "paper" (pix2pix), or "not used";
        ``listed_gop``, ``traced_gop``; ``u50``, ``u50lv``: published images a second; ``u50_modelled``,
        ``u50lv_modelled``; ``u50_error``, ``u50lv_error``: modelled over published, minus 1; ``note``: why it is not
        used, or what the model lacks. NaN where there is nothing.
    """
    fitted, held = halves()
    half = dict.fromkeys(fitted, "fitted") | dict.fromkeys(held, "held out")
    rows = published()
    rows.loc[PIX2PIX] = {"u50": table("table_2").loc["U-Net FPGA", "fps"], "source": "paper"}
    found = []
    for name, row in rows.iterrows():
        rebuilt = name in ZOO or name == PIX2PIX
        note = NOT_REBUILT.get(name, WHY.get(name, ""))
        if rebuilt and name != PIX2PIX and name not in half:
            note = f"its layers, as published, have {100 * (gop(name) / row.gop - 1):+.1f} % of the listed operations"
        line = {"network": name, "half": half.get(name, "paper" if name == PIX2PIX else "not used")}
        line |= {"listed_gop": row.gop, "traced_gop": gop(name) if rebuilt else float("nan")}
        for card, target in (("u50", U50), ("u50lv", U50LV)):
            modelled = estimate(traced(name), target, constants=constants).fps if rebuilt else float("nan")
            line |= {card: row[card], f"{card}_modelled": modelled, f"{card}_error": modelled / row[card] - 1}
        found.append(line | {"note": note})
    return pd.DataFrame(found).set_index("network")


def shares(judged: pd.DataFrame, within: float = 0.15) -> dict[str, float]:
    """Share of the networks of :func:`judge` that the model meets: of each half on the U50, of both on the U50LV."""
    used = judged[judged.half.isin(["fitted", "held out"])]
    found = {half: rows.u50_error.abs().le(within).mean() for half, rows in used.groupby("half")}
    return found | {"U50LV": used.u50lv_error.dropna().abs().le(within).mean()}
