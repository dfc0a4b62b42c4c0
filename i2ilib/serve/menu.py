"""What a server offers: models with their inputs, their options (knobs in Nuke) and the function behind each."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from google.protobuf.message import Message

from ..errors import I2IError
from . import mlserver_pb2 as pb
from .scheduler import Work

Value = bool | int | float | str
Function = Callable[[tuple[np.ndarray, ...], dict[str, Value], Work], np.ndarray]

_LISTS = {  # kind of option: its list in a Model, its message, the Python type of a value
    "int": ("int_options", pb.IntAttrib, int),
    "float": ("float_options", pb.FloatAttrib, float),
    "bool": ("bool_options", pb.BoolAttrib, bool),
    "string": ("string_options", pb.StringAttrib, str),
    "button": ("button_options", pb.BoolAttrib, bool),
}  # in the order of Nuke's panel
# knobs of the node itself, and `model`, which begins the text that a script saves
_KNOBS = (
    "host port connect models serialiseKnob model name label class help onCreate onDestroy knobChanged updateUI "
    "autolabel panel icon indicators note_font note_font_size note_font_color tile_color gl_color hide_input cached "
    "disable dope_sheet postage_stamp postage_stamp_frame lifetimeStart lifetimeEnd useLifetime lock_connections "
    "selected xpos ypos bookmark inputs process_mask"
)
_LONGEST = 1000  # characters of a text


@dataclasses.dataclass(frozen=True)
class Option:
    """One knob of a model.

    Attributes:
        name: An identifier, which is the knob's label too.
        default: Its value in the list, and of a request that does not name it; its type is the option's.
        low: Least number.
        high: Largest number.
        choices: The texts or numbers that may stand there; empty for all.
        button: A push button: true in the one request that it causes.

    Raises:
        I2IError: If the name is one that the node cannot take, or the default is none that may stand there.
    """

    name: str
    default: Value
    low: float | None = None
    high: float | None = None
    choices: tuple[Value, ...] = ()
    button: bool = False

    def __post_init__(self) -> None:
        if not (self.name.isidentifier() and self.name.isascii()) or self.name in _KNOBS.split():
            got = f"{self.name!r}" + (", a knob of the node" if self.name in _KNOBS.split() else "")
            raise I2IError("option", expected="an identifier", got=got, remedy="Choose another name.")
        self.check(self.default)
        if isinstance(self.default, float):  # as it travels
            object.__setattr__(self, "default", float(np.float32(self.default)))

    @property
    def kind(self) -> str:
        """A key of the lists in a Model."""
        if self.button:
            return "button"
        return {bool: "bool", int: "int", float: "float", str: "string"}[type(self.default)]

    def check(self, value: Value) -> Value:
        """The value, if it may stand there.

        Raises:
            I2IError: If not.
        """
        what, number = f"option {self.name}", isinstance(value, int | float) and not isinstance(value, bool)
        if self.choices and value not in self.choices:
            raise I2IError(what, expected=" or ".join(map(str, self.choices)), got=repr(value))
        low, high = (-math.inf if self.low is None else self.low), (math.inf if self.high is None else self.high)
        if number and not (low <= value <= high and math.isfinite(value)):
            least = f" from {self.low:g}" if self.low is not None else ""
            most = f" to {self.high:g}" if self.high is not None else ""
            raise I2IError(what, expected=f"a finite number{least}{most}", got=value)
        if isinstance(value, int) and not -(2**31) <= value < 2**31:
            raise I2IError(what, expected="a number of 32 bits", got=value)
        if isinstance(value, str) and (";" in value or len(value) > _LONGEST):
            raise I2IError(what, expected=f"at most {_LONGEST} characters, no ';'", got=repr(value[:40]))
        return value


@dataclasses.dataclass(frozen=True)
class Served:
    """A model as a server lists it and runs it.

    Attributes:
        name: What a request calls it by.
        label: What stands in the node's menu.
        function: (images, options, work) to planes. Images are (C, H, W) float32, top row first, views that must not
            be changed, all of one size; the planes that it returns have that size too. Whatever it raises is told to
            the client; an I2IError by its text alone.
        inputs: Name and planes of each input of the node.
        outputs: Likewise; the first is the picture.
        options: Its knobs.

    Raises:
        I2IError: If name, label or options are none that the node can take.
    """

    name: str
    label: str
    function: Function
    inputs: tuple[tuple[str, int], ...] = (("source", 3),)
    outputs: tuple[tuple[str, int], ...] = (("result", 3),)
    options: tuple[Option, ...] = ()

    def __post_init__(self) -> None:
        for what, text in {"name": self.name, "label": self.label}.items():
            if not text.strip() or len(text) > 200 or any(c in text for c in ";:") or not text.isprintable():
                raise I2IError(f"model {what}", expected="a short text without ';' and ':'", got=repr(text))
        if not self.inputs:
            raise I2IError(f"model {self.name}", expected="at least one input", got="none")
        if twice := _twice([option.name for option in self.options]):
            raise I2IError(f"model {self.name}", expected="options with different names", got=f"{twice} twice")

    def describe(self, values: dict[str, Value] | None = None) -> Message:
        """The model as it is listed, or with the values that a client sends back."""
        values = values or {}
        if unknown := set(values) - {option.name for option in self.options}:
            raise I2IError(f"model {self.name}", expected="its options", got=", ".join(sorted(unknown)))
        model = pb.Model(name=self.name, label=self.label)
        for found, prototypes in ((model.inputs, self.inputs), (model.outputs, self.outputs)):
            found.extend(pb.ImagePrototype(name=name, channels=planes) for name, planes in prototypes)
        for option in self.options:
            field, kind, _ = _LISTS[option.kind]
            value = values.get(option.name, option.default)
            getattr(model, field).append(kind(name=option.name, values=[value]))
        return model

    def values(self, model: Message) -> dict[str, Value]:
        """The value of every option for one request: what it says, else the default.

        Raises:
            I2IError: If the request names an option that is not declared, in the list of another type, twice, without a
                value or with several, or with one that may not stand there.
        """
        declared, found = {option.name: option for option in self.options}, {}
        for kind, (field, _, python) in _LISTS.items():
            for given in getattr(model, field):
                what = f"option {given.name[:40]!r}"
                option = declared.get(given.name)
                if option is None or option.kind != kind:
                    known = ", ".join(f"{o.kind} {o.name}" for o in self.options) or "none"
                    raise I2IError(what, expected=f"an option of {self.name} ({known})", got=f"a {kind} of that name")
                if given.name in found:
                    raise I2IError(what, expected="it once", got="it twice")
                if len(given.values) != 1:
                    raise I2IError(what, expected="one value", got=len(given.values))
                found[given.name] = option.check(python(given.values[0]))
        if model.mc_options:
            raise I2IError("mc_options", expected="none", got=len(model.mc_options))
        return {name: found.get(name, option.default) for name, option in declared.items()}

    def run(self, images: tuple[np.ndarray, ...], values: dict[str, Value], work: Work) -> np.ndarray:
        """The picture for a request.

        Returns:
            (C, H, W) float32, top row first, of the images' size.

        Raises:
            I2IError: If the images are not those of the inputs, or the function gives no picture of their size.
        """
        if len(images) != len(self.inputs):
            names = ", ".join(name for name, _ in self.inputs)
            raise I2IError("images", expected=f"{len(self.inputs)} ({names})", got=len(images))
        if len({image.shape[1:] for image in images}) != 1:
            raise I2IError("images", expected="one size", got=", ".join(_size(image) for image in images))
        out = np.asarray(self.function(images, values, work))
        if out.ndim != 3 or not len(out) or out.shape[1:] != images[0].shape[1:]:
            raise I2IError(f"model {self.name}", expected=f"planes of {_size(images[0])}", got=f"shape {out.shape}")
        with np.errstate(over="ignore"):  # what is too large for float32 is infinite there
            return out.astype(np.float32, copy=False)


def _size(image: np.ndarray) -> str:
    return f"{image.shape[2]} x {image.shape[1]}"


def _twice(names: Sequence[str]) -> str | None:
    return next((name for i, name in enumerate(names) if name in names[:i]), None)


def check_menu(models: Sequence[Served]) -> dict[str, Served]:
    """Models by name.

    Raises:
        I2IError: If there is none, or two share a name or a label; a saved script knows a model by its label.
    """
    if not models:
        raise I2IError("models", expected="at least one", got="none")
    for what in ("name", "label"):
        if twice := _twice([getattr(model, what) for model in models]):
            raise I2IError("models", expected=f"different {what}s", got=f"{twice!r} twice")
    return {model.name: model for model in models}
