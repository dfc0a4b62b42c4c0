"""One picture in and out, through OpenImageIO: PNG, JPEG, TIFF and OpenEXR; BMP and GIF in only."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import numpy as np
import torch

from .. import colour
from ..errors import FrameError, I2IError
from ..runtime import atomic_path
from .layers import Choice, choose, layers

_WRITTEN = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".exr")
SUFFIXES = (*_WRITTEN, ".bmp", ".gif")
COLOURS = ("srgb", "linear")
MOST_PIXELS = 2**28  # 16384 x 16384; a display window may claim anything
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)  # of JPEG, but for those within coded data
_HALF = float(np.finfo(np.float16).max)
_REC709 = (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, 0.3127, 0.3290)


@dataclasses.dataclass(frozen=True)
class Frame:
    """One picture.

    Attributes:
        rgb: (1, 3, H, W) float32, as stored: [0, 1] for integer formats, the open range for float ones. A grey picture
            has three equal channels. Upright, whatever the file's orientation.
        alpha: (1, 1, H, W) float32, or None if the file has none.
        name: File name without suffix, or ``frame_000001`` for a video; names the results.
        source: What to name in an error: a path, or a path with a frame number.
        colour: "srgb" or "linear", by what the file is and says; None: by the suffix of ``source``.
        origin: (x, y) of the first pixel, as OpenEXR's display window has it.
        aspect: Width of a pixel over its height, as OpenEXR tells it; 2 for many anamorphic plates.
        depth: Bits of a channel in the file, "8 bits" or "16 bits, float"; empty where it is not known.
        notes: What a user should know of how the file was read, one sentence each.
    """

    rgb: torch.Tensor
    alpha: torch.Tensor | None
    name: str
    source: str
    colour: str | None = None
    origin: tuple[int, int] = (0, 0)
    aspect: float = 1.0
    depth: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.colour is None:
            object.__setattr__(self, "colour", stored_colour(self.source))


def stored_colour(path: str | os.PathLike) -> str:
    """The usual colour state of a file by its format: "linear" for OpenEXR, "srgb" for all others."""
    return "linear" if Path(path).suffix.lower() == ".exr" else "srgb"


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels (H, W, C) as a viewer shows them.

    Args:
        pixels: As stored.
        orientation: The EXIF tag, 1 to 8; other values change nothing.
    """
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def read_image(path: str | os.PathLike, *, layer: str | None = None, coverage: bool = False) -> Frame:
    """Read one PNG, JPEG, TIFF, OpenEXR, BMP or GIF file of 1 to 32 bits, grey or colour, with or without alpha.

    An OpenEXR file gives its display window: what lies outside the data window is black and transparent, and overscan
    is cut off. A PNG whose gAMA says that it is linear is; one of another gamma arrives in sRGB codes.

    Args:
        path: The file; its content decides on the format, not its name.
        layer: The layer of an OpenEXR file, or one channel to be read as grey; by default the colour layer.
        coverage: The picture is a matte: its numbers count, whatever gamma the file declares.

    Raises:
        FrameError: If the file is missing, truncated, empty, not a picture, or does not say which of its layers is the
            colour; the message names it.
    """
    path = Path(path)
    if problem := what_is_wrong(path):
        raise FrameError(str(path), expected="an image file", got=problem)
    file = _open(path)
    try:
        kind = file.format_name()
        parts = _parts(file, path)
        pages, parts = len(parts), parts if kind == "openexr" else parts[:1]
        found = layers((spec.getattribute("oiio:subimagename") or "", spec.channelnames) for spec in parts)
        choice = choose(str(path), found, wanted=layer, any_grey=kind != "openexr")
        spec = parts[choice.part]
        pixels = _stored(file, path, spec, choice)
    finally:
        file.close()
    origin, aspect = (0, 0), 1.0
    if kind == "openexr":
        pixels, origin = _in_display_window(pixels, spec), (spec.full_x, spec.full_y)
        aspect = spec.get_float_attribute("PixelAspectRatio", 1.0)
    orientation = spec.get_int_attribute("Orientation", 1)
    data = torch.from_numpy(upright(pixels, orientation).transpose(2, 0, 1).copy())[None]
    rgb, alpha = data[:, : len(choice.rgb)], None if choice.alpha is None else data[:, -1:]
    rgb, state, notes = (rgb, "linear", ()) if coverage else _colour(rgb, kind, spec)
    notes = (*choice.notes, *notes)
    if pages > len(parts):
        notes = (*notes, "only its first page is read")
    rgb = rgb if rgb.shape[1] == 3 else rgb.repeat(1, 3, 1, 1)
    return Frame(rgb, alpha, path.stem, str(path), state, origin, aspect, _depth(spec, choice), notes)


def _depth(spec, choice: Choice) -> str:
    kind = str(spec.channelformat(choice.rgb[0]))
    bits = {"half": 16, "float": 32, "double": 64}.get(kind)
    if bits:
        return f"{bits} bits, float"
    return f"{spec.get_int_attribute('oiio:BitsPerSample', spec.channelformat(choice.rgb[0]).size() * 8)} bits"


def _stored(file, path: Path, spec, choice: Choice) -> np.ndarray:
    """The chosen channels (H, W, C) float32: colours first, then alpha; whole, or an error."""
    import OpenImageIO as oiio

    kind, kinds = file.format_name(), {str(spec.channelformat(index)) for index in choice.rgb}
    if (kind == "openexr" and "uint" in kinds) or "LAB" in str(spec.getattribute("tiff:ColorSpace")):
        got = "CIELAB" if kind == "tiff" else "whole numbers, as of object ids"
        raise FrameError(str(path), expected="RGB or grey", got=got, remedy="Convert it, or choose another layer.")
    wanted = [*choice.rgb, *([] if choice.alpha is None else [choice.alpha])]
    first = min(wanted)
    # integers in their own type: OpenImageIO's conversion to float is off by one unit in the last place
    type_ = oiio.FLOAT if kinds <= {"half", "float"} else oiio.UNKNOWN
    pixels = file.read_image(choice.part, 0, first, max(wanted) + 1, type_)
    problem = _error(file)
    if kind == "jpeg" and not problem and _cut_jpeg(path.read_bytes()):
        problem = "no end of the image"
    if pixels is None or problem:  # JPEG gives half a picture and an error
        raise FrameError(
            str(path),
            expected="an image that can be decoded whole",
            got=problem.splitlines()[0] if problem else "no pixels",
            remedy="It looks truncated or damaged: copy or render it again.",
        )
    pixels = _unit(pixels.reshape(spec.height, spec.width, -1))[..., [index - first for index in wanted]]
    if spec.get_int_attribute("tiff:PhotometricInterpretation", 1) == 0 and str(spec.format) in ("uint16", "uint"):
        return 1 - pixels  # min is white: OpenImageIO turns only 8 bits round
    return pixels


def what_is_wrong(path: Path) -> str:
    """Why there is no file that can be read; empty if there is one."""
    try:
        if path.is_file():
            with open(path, "rb"):
                return ""
        return "a link to nothing" if path.is_symlink() else "no file" if path.exists() else "nothing there"
    except OSError as error:  # no permission, or a name that is too long
        return error.strerror or str(error)


def _open(path: Path):
    import OpenImageIO as oiio

    oiio.attribute("log_times", 0)
    wanted = oiio.ImageSpec()
    wanted.attribute("oiio:UnassociatedAlpha", 1)  # give colour as stored: do not multiply by alpha
    file = oiio.ImageInput.open(_text(path), wanted)
    if file is None:
        got = _error(oiio) or "an unknown format"
        raise FrameError(str(path), expected="an image that can be decoded", got=got.splitlines()[-1])
    return file


def _text(path: Path) -> str:
    """A path as OpenImageIO takes it."""
    try:
        return str(path).encode().decode()
    except UnicodeEncodeError:
        remedy = "Rename the file."
        raise FrameError(ascii(str(path)), expected="a name in UTF-8", got="other bytes", remedy=remedy) from None


def _error(of) -> str:
    """The last error of OpenImageIO or of a file, which may quote bytes of the file."""
    try:
        return of.geterror().strip()
    except UnicodeDecodeError:
        return "damaged text"


def _parts(file, path: Path) -> list:
    """The header of every part, once it is certain that they can be read."""
    parts = []
    while file.seek_subimage(len(parts), 0):
        parts.append(file.spec())
    _error(file)  # that there is no further part is no error
    file.seek_subimage(0, 0)
    for spec in parts:
        if spec.deep:
            raise FrameError(str(path), expected="a flat image", got="a deep one", remedy="Flatten it first.")
        pixels = max(spec.width * spec.height, spec.full_width * spec.full_height)
        if pixels > MOST_PIXELS:
            size = f"{spec.full_width} x {spec.full_height}"
            raise FrameError(str(path), expected=f"at most {MOST_PIXELS} pixels", got=size, remedy="Crop or scale it.")
    return parts


def _cut_jpeg(data: bytes) -> bool:
    """Whether a JPEG ends before its end marker; a progressive one would look like a blurred picture.

    Markers are followed from the start: previews lie before the image, and telephones append films behind it.
    """
    at = 2
    while data[at : at + 1] == b"\xff":
        marker = data[at + 1 : at + 2]
        if marker == b"\xd9":
            return False
        if marker == b"\xff":  # a byte that only fills
            at += 1
            continue
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == b"\xda":  # coded data follow, up to the next marker
            found = _MARKER.search(data, at)
            at = found.start() if found else len(data)
    return at >= len(data)  # else something that the decoder has judged


def _unit(pixels: np.ndarray) -> np.ndarray:
    """Integers as a share of their largest value; float numbers as they are; float32."""
    if not np.issubdtype(pixels.dtype, np.integer):
        return pixels.astype(np.float32, copy=False)
    largest = np.iinfo(pixels.dtype).max
    if pixels.dtype.itemsize < 4:
        return pixels.astype(np.float32) / np.float32(largest)
    return (pixels / float(largest)).astype(np.float32)


def _in_display_window(pixels: np.ndarray, spec) -> np.ndarray:
    left, top = spec.x - spec.full_x, spec.y - spec.full_y
    height, width, channels = pixels.shape
    if (left, top, height, width) == (0, 0, spec.full_height, spec.full_width):
        return pixels
    whole = np.zeros((spec.full_height, spec.full_width, channels), np.float32)
    x0, x1 = max(left, 0), min(left + width, spec.full_width)
    y0, y1 = max(top, 0), min(top + height, spec.full_height)
    if x0 < x1 and y0 < y1:
        whole[y0:y1, x0:x1] = pixels[y0 - top : y1 - top, x0 - left : x1 - left]
    return whole


def _colour(rgb: torch.Tensor, kind: str, spec) -> tuple[torch.Tensor, str, tuple[str, ...]]:
    """Colours, their state, and what to tell of it."""
    if kind == "openexr":
        primaries = spec.getattribute("chromaticities")
        if primaries is None or np.allclose(primaries, _REC709, atol=2e-3):
            return rgb, "linear", ()
        return rgb, "linear", ("its primaries are not Rec. 709 and are taken as if they were",)
    notes = ()
    profile = spec.getattribute("ICCProfile:profile_description")
    if spec.getattribute("ICCProfile") is not None and "srgb" not in str(profile).lower():
        notes = (f"its colour profile ({profile or 'without a name'}) is not applied: taken as sRGB",)
    if kind == "png":
        gamma = spec.getattribute("oiio:Gamma")
        if str(spec.getattribute("oiio:ColorSpace")).startswith("lin_"):
            return rgb, "linear", (*notes, "its gAMA says linear light, and it is taken as such")
        if gamma is not None and abs(gamma / 2.2 - 1) > 0.05:  # 1/2.2 is how PNG files say sRGB
            notes = (*notes, f"its gamma of {gamma:.3g} (gAMA) is turned into sRGB")
            return colour.linear_to_srgb(rgb.contiguous() ** gamma), "srgb", notes
    if str(spec.format) in ("float", "half", "double"):
        notes = (
            *notes,
            "its floating-point numbers are taken as sRGB codes (if they are light: --input-colour linear)",
        )
    return rgb, "srgb", notes


def write_image(
    path: str | os.PathLike,
    pixels: torch.Tensor,
    *,
    bits: int = 16,
    premultiplied: bool = False,
    origin: tuple[int, int] = (0, 0),
    aspect: float = 1.0,
) -> None:
    """Write a picture, whole or not at all.

    Args:
        path: ``.png`` and ``.tif`` hold ``bits`` per channel; ``.exr`` holds float16, ``.jpg`` 8 bits.
        pixels: (1, C, H, W) float32; C is 1 (grey), 3 (RGB) or 4 (RGB and alpha, not in ``.jpg``). Integer formats
            clip to [0, 1], and float16 limits finite numbers to ±65504.
        bits: 8 or 16.
        premultiplied: Whether the colours were multiplied by alpha already; recorded where the format can. Colours are
            stored as they come either way.
        origin: (x, y) of the first pixel; kept by OpenEXR alone.
        aspect: Width of a pixel over its height; kept by OpenEXR alone.

    Raises:
        FrameError: If the picture cannot be written, or holds NaN or infinity and the format is one of integers.
        I2IError: If ``pixels`` or ``bits`` is none of the above.
    """
    import OpenImageIO as oiio

    path = Path(path)
    if pixels.ndim != 4 or pixels.shape[0] != 1 or pixels.shape[1] not in (1, 3, 4) or not pixels.numel():
        raise I2IError("write_image", expected="pixels of shape (1, 1 or 3 or 4, H, W)", got=tuple(pixels.shape))
    if bits not in (8, 16):
        raise I2IError("bits", expected="8 or 16", got=bits)
    suffix = path.suffix.lower()
    if path.is_dir():
        raise FrameError(str(path), expected="a file to write", got="a folder", remedy="Move it away.")
    if suffix not in _WRITTEN:
        raise I2IError(str(path), expected="a name ending in " + ", ".join(_WRITTEN), got=repr(suffix))
    if suffix in (".jpg", ".jpeg") and pixels.shape[1] == 4:
        raise I2IError(str(path), expected="1 or 3 channels, as JPEG has no alpha", got=4, remedy="Write a PNG.")
    array = pixels[0].detach().permute(1, 2, 0).to("cpu", torch.float32).numpy()
    if suffix == ".exr":
        kind = "half"
        array = np.where(np.isfinite(array), np.clip(array, -_HALF, _HALF), array).astype(np.float16)
    else:
        if not np.isfinite(array).all():
            raise FrameError(
                str(path), expected="finite pixels", got="NaN or infinity", remedy="Write an OpenEXR file."
            )
        bits = 8 if suffix in (".jpg", ".jpeg") else bits
        kind = f"uint{bits}"
        array = (np.clip(array, 0, 1) * (2**bits - 1) + 0.5).astype(kind)
    array = np.ascontiguousarray(array)
    height, width, channels = array.shape
    spec = oiio.ImageSpec(width, height, channels, kind)
    spec.attribute("oiio:ColorSpace", "lin_rec709_scene" if suffix == ".exr" else "srgb_rec709_scene")
    if suffix == ".exr":
        spec.x, spec.y = spec.full_x, spec.full_y = origin
        spec.attribute("PixelAspectRatio", float(aspect))
    if channels == 4:
        spec.alpha_channel = 3
        if not premultiplied or suffix == ".png":  # PNG knows no other alpha, and would be divided by it
            spec.attribute("oiio:UnassociatedAlpha", 1)
    if suffix == ".png":
        spec.attribute("png:compressionLevel", 1)  # film grain hardly compresses: higher levels cost time, not size
    with atomic_path(path) as temporary:
        file = oiio.ImageOutput.create(_text(temporary))
        if file is None or not file.open(str(temporary), spec) or not file.write_image(array) or not file.close():
            raise FrameError(str(path), expected="a writable image", got=_error(file or oiio))
