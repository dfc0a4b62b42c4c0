"""Energy of a computation: read from a meter over windows of seconds, or "not measured" with the reason. No guesses.

Three meters, each a counter or a sensor of one device, none of them of the whole machine:

- ``rapl``: the CPU packages, without their memory (Running Average Power Limit, the kernel's powercap tree).
- ``nvml``: an NVIDIA GPU with its memory, by way of zeus. The sensors behind it are renewed about every 100 ms, and on
  A100 and H100 they look at a quarter of the time only (Yang, Adamek and Armour, arXiv 2312.02741): a short window can
  be wrong by any factor, so windows last seconds and are repeated.
- ``alveo``: an AMD Alveo card, the sum of its supply rails as the driver gives it in hwmon; a power, so it is sampled
  and integrated.

The paper measured alike: RAPL for its CPU, NVIDIA's tools for its GPU, the rails of the card for its U50.
"""

from __future__ import annotations

import dataclasses
import re
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from tqdm.auto import tqdm

from ..errors import I2IError, UnavailableError
from ..runtime import Availability, quiet, require

SYS = Path("/sys")
_XILINX = "0x10ee"  # vendor id on the PCI bus
_MOST_WATTS = 1000.0  # of a CPU package: an upper bound that tells how soon its counter can come round


@dataclasses.dataclass(frozen=True)
class Energy:
    """What a call costs, or why that is not known.

    Attributes:
        joules: Of one call: the median of the windows. None where nothing could measure it.
        method: The meter's way: what was read, through what.
        scope: Whose energy it is.
        window_s: Length of a window, seconds: the median.
        reason: Why ``joules`` is None; empty where it was measured.
        n: Windows.
        calls: Calls in a window: the median.
        low: Of one call, joules: the window with the least.
        high: Of one call, joules: the window with the most.
        idle_watts: The same device while it waits, just before; part of every figure above.
    """

    joules: float | None
    method: str = ""
    scope: str = ""
    window_s: float = 0.0
    reason: str = ""
    n: int = 0
    calls: int = 0
    low: float | None = None
    high: float | None = None
    idle_watts: float | None = None

    @property
    def watts(self) -> float | None:
        """Mean power during the windows, watts."""
        return None if self.joules is None else self.joules * self.calls / self.window_s

    @property
    def above_idle(self) -> float | None:
        """Joules of one call beyond what the idle device would have drawn meanwhile; noise can make it negative."""
        if self.joules is None or self.idle_watts is None:
            return None
        return self.joules - self.idle_watts * self.window_s / self.calls

    def __str__(self) -> str:
        if self.joules is None:
            return f"not measured: {self.reason}"
        return f"{self.joules:.3g} J ({self.low:.3g} to {self.high:.3g}, {self.n} windows of {self.window_s:.1f} s)"


class Meter(Protocol):
    """Energy of one device between two moments.

    Attributes:
        method: What is read, through what.
        scope: Whose energy it is.
        min_window_s: Shortest window that it can be trusted with, seconds.
        max_window_s: Longest one.
    """

    method: str
    scope: str
    min_window_s: float
    max_window_s: float

    def begin(self) -> None:
        """Start a window."""

    def end(self) -> float:
        """Joules since :meth:`begin`."""


class Rapl:
    """The CPU packages' own energy counters, which the kernel shows in powercap. Counts in µJ and comes round.

    zeus reads the same files, but starts a process for each package that watches for the counter coming round; within
    one window it does so once at most, which a remainder settles.

    Args:
        root: Of the tree; another one in tests.

    Raises:
        UnavailableError: If there is no such counter, or it may not be read.
    """

    method = "RAPL energy counters, powercap"
    min_window_s = 1.0  # the counter is renewed every millisecond, but a window should average what else runs

    def __init__(self, root: Path = SYS):
        zones = sorted((root / "class/powercap").glob("intel-rapl:*"))  # AMD's processors appear under this name too
        zones = [zone for zone in zones if re.fullmatch(r"intel-rapl:\d+", zone.name)]  # no parts of a package
        self.zones = [zone for zone in zones if _text(zone / "name").startswith("package")]  # not psys: counted twice
        if not self.zones:
            raise UnavailableError(
                "rapl",
                expected="energy counters of the CPU in /sys/class/powercap",
                got="none",
                remedy="Only Linux shows them, virtual machines seldom; measure on the machine itself.",
            )
        self.ranges = [int(_text(zone / "max_energy_range_uj")) for zone in self.zones]
        self.scope = f"{len(self.zones)} CPU package{'s' * (len(self.zones) > 1)}, without memory"
        self.max_window_s = min(self.ranges) * 1e-6 / _MOST_WATTS
        self.before = self._read()

    def _read(self) -> list[int]:
        try:
            return [int(_text(zone / "energy_uj")) for zone in self.zones]
        except PermissionError:
            raise UnavailableError(
                "rapl",
                expected="a counter that may be read",
                got=f"no permission for {self.zones[0].name}/energy_uj",
                remedy="Only root may read it: sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj.",
            ) from None

    def begin(self) -> None:
        self.before = self._read()

    def end(self) -> float:
        passed = zip(self._read(), self.before, self.ranges, strict=True)
        return 1e-6 * sum((now - before) % (most + 1) for now, before, most in passed)


class Nvml:
    """An NVIDIA GPU's own energy counter (mJ), by way of zeus, which honours ``CUDA_VISIBLE_DEVICES``.

    Args:
        index: Of the GPU, as PyTorch counts.

    Raises:
        UnavailableError: If zeus, the driver or the GPU is absent, or the GPU keeps no counter.
    """

    method = "NVML energy counter, zeus"
    min_window_s = 2.0  # twenty times what it takes to be renewed
    max_window_s = float("inf")

    def __init__(self, index: int = 0):
        require("zeus")
        try:
            with quiet("zeus"):
                self.gpu = require("zeus.device.gpu.nvidia").NVIDIAGPUs().gpus[index]
                name, counts = self.gpu.get_name(), self.gpu.supports_get_total_energy_consumption()
        except Exception as error:  # zeus has an exception for every word of the driver, of no common public base
            got = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UnavailableError("nvml", expected="an NVIDIA GPU with its driver", got=got) from None
        if not counts:
            raise UnavailableError("nvml", expected="a GPU that counts energy (Volta or newer)", got=name)
        self.scope = f"{name} with its memory"
        self.before = 0

    def _read(self) -> int:
        import torch

        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # else the window ends before the work does
        return self.gpu.get_total_energy_consumption()

    def begin(self) -> None:
        self.before = self._read()

    def end(self) -> float:
        return 1e-3 * (self._read() - self.before)


class Alveo:
    """An Alveo card's power sensor (µW), sampled by a thread and integrated by trapezoids.

    The driver renews it about once a second. ``power1_average`` beside it is no average: XRT's driver gives the largest
    value there (``xmc.c``), so it is not read.

    Args:
        root: Of the tree; another one in tests.
        period_s: Seconds between two samples.

    Raises:
        UnavailableError: If there is no card, or its driver shows no power.
    """

    method = "power sensor of the card in hwmon, integrated"
    min_window_s = 5.0
    max_window_s = float("inf")

    def __init__(self, root: Path = SYS, *, period_s: float = 0.1):
        devices = sorted((root / "bus/pci/devices").glob("*"))
        cards = [card for card in devices if (card / "vendor").exists() and _text(card / "vendor") == _XILINX]
        places = ("hwmon/hwmon*/power1_input", "*/hwmon/hwmon*/power1_input")  # of the card, of a part of its driver
        sensors = [sensor for card in cards for place in places for sensor in sorted(card.glob(place))]
        if not sensors:
            raise UnavailableError(
                "alveo",
                expected="a power sensor of an Alveo card (hwmon, power1_input)",
                got="a card without one" if cards else "no card on the PCI bus",
                remedy="Install the Xilinx Runtime (XRT) and its driver." if cards else None,
            )
        self.sensor, self.period_s = sensors[0], period_s
        card = next(
            part for part in self.sensor.parts if re.fullmatch(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.\d", part)
        )
        self.scope = f"Alveo card {card}, all rails"

    def _sample(self) -> None:
        self.samples.append((time.perf_counter(), 1e-6 * int(_text(self.sensor))))

    def _watch(self) -> None:
        while not self.stop.wait(self.period_s):
            self._sample()

    def begin(self) -> None:
        self.samples: list[tuple[float, float]] = []
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="alveo-power", daemon=True)
        self._sample()
        self.thread.start()

    def end(self) -> float:
        self.stop.set()
        self.thread.join()
        self._sample()
        pairs = zip(self.samples, self.samples[1:], strict=False)
        return sum((later - sooner) * (a + b) / 2 for (sooner, a), (later, b) in pairs)


def _text(path: Path) -> str:
    return path.read_text(encoding="ascii").strip()


METERS: dict[str, Callable[[Path], Meter]] = {"rapl": Rapl, "nvml": lambda root: Nvml(), "alveo": Alveo}


def meters(*, root: Path = SYS) -> dict[str, Availability]:
    """Every meter that is known, and whether it can be read here, with the reason.

    Args:
        root: Of the kernel's tree of devices.
    """
    found = {}
    for name, make in METERS.items():
        try:
            found[name] = Availability(True, make(root).scope)
        except UnavailableError as error:
            found[name] = Availability(False, str(error))
    return found


def meter_for(told: dict[str, object]) -> str:
    """The meter that belongs to a runner, by what it says of itself.

    Args:
        told: From :meth:`i2ilib.deploy.Runner.describe`.

    Example:
        >>> meter_for({"target": "OpenVINO", "device": "a CPU"})
        'rapl'
    """
    device = f"{told.get('target')} {told.get('device')}".lower()
    if "alveo" in device or "dpu" in device:
        return "alveo"
    return "nvml" if "nvidia" in device or "tensorrt" in device or "cuda" in device else "rapl"


def measure(
    work: Callable[[], object],
    *,
    seconds: float = 5.0,
    repeats: int = 3,
    meter: str | Meter | None = None,
    progress: bool = False,
) -> Energy:
    """Energy of one call of ``work``, from windows full of calls.

    The device's idle power is taken first, in a window of the same length in which nothing is called: what a meter
    counts contains it, and whatever else runs on the device meanwhile.

    Args:
        work: What to measure; it must wait until its own work is done. It is called once before, to warm up.
        seconds: Of a window, at least; the call at its end is waited for.
        repeats: Windows.
        meter: A name in :data:`METERS`, or a meter; None takes the only one there is.
        progress: Show a bar over the windows.

    Returns:
        The measurement; with ``joules`` None and the reason where there is no such meter here, or it does not move.

    Raises:
        I2IError: If the meter's name is unknown, there are several and none was named, the windows are too short or
            too long for it, or there is none.
    """
    if repeats < 1:
        raise I2IError("repeats", expected="1 or more", got=repeats)
    try:
        found = _open(meter)
    except UnavailableError as error:
        return Energy(None, reason=str(error))
    if not found.min_window_s <= seconds <= found.max_window_s:
        raise I2IError(
            "seconds",
            expected=f"{found.min_window_s:g} to {found.max_window_s:g} for {found.method}",
            got=seconds,
            remedy="A shorter window holds too few readings, a longer one lets the counter come round twice.",
        )
    work()
    idle, lasted, _ = _window(found, lambda: time.sleep(seconds), seconds)
    windows = [
        _window(found, work, seconds) for _ in tqdm(range(repeats), "energy", unit="window", disable=not progress)
    ]
    told = {"method": found.method, "scope": found.scope, "window_s": statistics.median(w[1] for w in windows)}
    if min(joules for joules, _, _ in windows) <= 0:
        return Energy(None, **told, reason=f"{found.method}: the counter did not move in {seconds:g} s")
    each = [joules / calls for joules, _, calls in windows]
    return Energy(
        statistics.median(each),
        **told,
        n=repeats,
        calls=round(statistics.median(calls for _, _, calls in windows)),
        low=min(each),
        high=max(each),
        idle_watts=idle / lasted,
    )


def _open(meter: str | Meter | None) -> Meter:
    """The meter that was meant."""
    if meter is None:
        there = meters()
        able = [name for name, found in there.items() if found]
        if len(able) > 1:
            raise I2IError(
                "meter",
                expected="the name of one",
                got=f"none, with {' and '.join(able)} here",
                remedy="Name the meter of the device that does the work.",
            )
        if not able:
            raise UnavailableError("no meter here (" + "; ".join(found.reason for found in there.values()) + ")")
        meter = able[0]
    if not isinstance(meter, str):
        return meter
    if meter not in METERS:
        raise I2IError("meter", expected=" or ".join(METERS), got=repr(meter))
    return METERS[meter](SYS)


def _window(meter: Meter, work: Callable[[], object], seconds: float) -> tuple[float, float, int]:
    """Joules, seconds and calls of one window."""
    calls = 0
    began = time.perf_counter()
    meter.begin()
    try:
        while not calls or time.perf_counter() - began < seconds:
            work()
            calls += 1
    finally:
        joules = meter.end()  # even if the work fails: a sensor's thread must end
    return joules, time.perf_counter() - began, calls
