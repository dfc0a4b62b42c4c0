"""Meters read what the kernel and the driver show, in a tree and with a driver of our own; without them: a reason."""

import itertools
import os
import sys
import time
import types

import pytest

from i2ilib import I2IError, UnavailableError
from i2ilib.deploy import energy
from i2ilib.deploy.energy import Alveo, Energy, Nvml, Rapl, measure, meter_for, meters


class Clock:
    """Time that goes by when someone sleeps or asks, however busy the machine is."""

    now = 0.0

    def sleep(self, seconds):
        self.now += seconds

    def perf_counter(self):
        self.now += 1e-6
        return self.now


class Steady:
    """A meter of a device that always draws so many watts."""

    method, scope, min_window_s, max_window_s = "steady", "a device", 0.01, 10.0

    def __init__(self, watts=50.0):
        self.watts = watts

    def begin(self):
        self.began = energy.time.perf_counter()

    def end(self):
        return self.watts * (energy.time.perf_counter() - self.began)


def zone(root, name, kind="package-0", energy_uj=0, most=262_143_328_850):
    folder = root / "class/powercap" / name
    folder.mkdir(parents=True)
    for file, value in (("name", kind), ("energy_uj", energy_uj), ("max_energy_range_uj", most)):
        (folder / file).write_text(f"{value}\n")
    return folder / "energy_uj"


def card(root, sensor="hwmon/hwmon3/power1_input", vendor="0x10ee", address="0000:3b:00.1"):
    folder = root / "bus/pci/devices" / address
    folder.mkdir(parents=True)
    (folder / "vendor").write_text(vendor + "\n")
    if sensor:
        (folder / sensor).parent.mkdir(parents=True)
        (folder / sensor).write_text("20000000\n")
        return folder / sensor
    return None


@pytest.fixture
def gpu(monkeypatch):
    """zeus with a GPU that counts; it draws 300 W by a clock that the test turns."""
    state = types.SimpleNamespace(mj=10**9, counts=True, name="NVIDIA Test GPU")

    class Gpu:
        def get_name(self):
            return state.name

        def supports_get_total_energy_consumption(self):
            return state.counts

        def get_total_energy_consumption(self):
            return state.mj

    names = ("zeus", "zeus.device", "zeus.device.gpu", "zeus.device.gpu.nvidia")
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    state.driver = sys.modules[names[-1]]
    state.driver.NVIDIAGPUs = lambda: types.SimpleNamespace(gpus=[Gpu()])
    return state


# --- the measurement -----------------------------------------------------------------------------


def test_joules_of_a_call(monkeypatch):
    monkeypatch.setattr(energy, "time", clock := Clock())
    got = measure(lambda: clock.sleep(0.004), seconds=0.05, repeats=3, meter=Steady(50.0))
    assert got.n == 3 and got.calls == 13 and got.window_s == pytest.approx(0.052, rel=1e-3)
    assert got.low <= got.joules <= got.high and got.joules == pytest.approx(50 * 0.004, rel=1e-3)
    assert got.watts == pytest.approx(50, rel=1e-3) and got.idle_watts == pytest.approx(50, rel=1e-3)
    assert got.above_idle == pytest.approx(0, abs=1e-3 * got.joules)  # it draws the same while it waits
    assert got.reason == "" and str(got).endswith("3 windows of 0.1 s)")


def test_median_low_and_high_of_uneven_windows(monkeypatch):
    windows = iter([(10.0, 2.0, 1), (6.0, 2.0, 3), (3.0, 2.0, 3), (9.0, 2.0, 3)])  # idle, then three
    monkeypatch.setattr(energy, "_window", lambda *_: next(windows))
    got = measure(lambda: None, seconds=2.0, repeats=3, meter=Steady())
    assert (got.low, got.joules, got.high, got.idle_watts, got.watts) == (1.0, 2.0, 3.0, 5.0, 3.0)
    assert got.above_idle == pytest.approx(2 - 5 * 2 / 3)


def test_without_a_meter_there_is_no_number(monkeypatch):
    here = {"rapl": "no counters", "nvml": "no GPU", "alveo": "no card"}

    def absent(name):
        def make(root):
            raise UnavailableError(here[name])

        return make

    monkeypatch.setattr(energy, "METERS", {name: absent(name) for name in here})
    called = []
    for meter in (None, "nvml"):
        got = measure(lambda: called.append(1), meter=meter)
        assert got.joules is None and got.watts is None and got.above_idle is None and not called
        assert str(got).startswith("not measured: ") and "no GPU" in got.reason
    assert "no counters" in measure(lambda: None).reason
    assert {name: (found.ok, found.reason) for name, found in meters().items()} == {
        name: (False, reason) for name, reason in here.items()
    }


def test_a_meter_that_stands_still():
    got = measure(lambda: None, seconds=0.02, repeats=1, meter=Steady(0.0))
    assert got.joules is None and "did not move" in got.reason


def test_bad_questions(monkeypatch):
    with pytest.raises(I2IError, match="repeats: expected 1 or more, got 0"):
        measure(lambda: None, repeats=0, meter=Steady())
    for seconds in (0.001, 11.0):
        with pytest.raises(I2IError, match=r"seconds: expected 0\.01 to 10 for steady"):
            measure(lambda: None, seconds=seconds, meter=Steady())
    with pytest.raises(I2IError, match="meter: expected rapl or nvml or alveo, got 'watts'"):
        measure(lambda: None, meter="watts")
    monkeypatch.setattr(energy, "METERS", {"rapl": lambda root: Steady(), "nvml": lambda root: Steady()})
    with pytest.raises(I2IError, match="Name the meter of the device"):
        measure(lambda: None)
    monkeypatch.setattr(energy, "METERS", {"rapl": lambda root: Steady()})
    assert measure(lambda: None, seconds=0.02, repeats=1).joules > 0  # the only one there is


def test_meter_of_a_runner():
    assert meter_for({"target": "PyTorch eager", "device": "NVIDIA H100"}) == "nvml"
    assert meter_for({"target": "TensorRT", "device": "?"}) == "nvml"
    assert meter_for({"target": "VART", "device": "Alveo U50"}) == "alveo"
    assert meter_for({"target": "OpenVINO", "device": "Xeon"}) == "rapl"


# --- RAPL ------------------------------------------------------------------------------------------


def test_rapl_sums_packages_only_and_survives_wrapping(tmp_path):
    first = zone(tmp_path, "intel-rapl:0", energy_uj=1_000_000)
    second = zone(tmp_path, "intel-rapl:1", "package-1", energy_uj=262_143_000_000)
    platform = zone(tmp_path, "intel-rapl:2", "psys", energy_uj=0)
    core = zone(tmp_path, "intel-rapl:0:0", "core", energy_uj=0)
    meter = Rapl(tmp_path)
    assert meter.scope == "2 CPU packages, without memory"
    assert meter.max_window_s == pytest.approx(262.1, abs=0.1)
    meter.begin()
    first.write_text("3500000\n")
    second.write_text("671149\n")  # came round: 328850 to the end, one to zero, 671149 on
    platform.write_text("9000000\n")
    core.write_text("9000000\n")
    assert meter.end() == pytest.approx(2.5 + 1.0, abs=1e-9)


def test_rapl_absent_or_locked(tmp_path, monkeypatch):
    with pytest.raises(UnavailableError, match="Only Linux shows them, virtual machines seldom"):
        Rapl(tmp_path)
    zone(tmp_path, "intel-rapl:0", "psys")
    with pytest.raises(UnavailableError, match="got none"):
        Rapl(tmp_path)
    counter = zone(tmp_path, "intel-rapl:1")
    counter.chmod(0)
    if os.access(counter, os.R_OK):  # root reads everything
        text = energy._text
        monkeypatch.setattr(
            energy, "_text", lambda path: text(path) if path != counter else (_ for _ in ()).throw(PermissionError)
        )
    with pytest.raises(UnavailableError, match=r"no permission for intel-rapl:1/energy_uj.*chmod a\+r"):
        Rapl(tmp_path)
    assert not meters(root=tmp_path)["rapl"]


# --- NVML -------------------------------------------------------------------------------------------


def test_nvml_counts_millijoules(gpu):
    meter = Nvml()
    assert meter.scope == "NVIDIA Test GPU with its memory" and meter.min_window_s >= 1
    meter.begin()
    gpu.mj += 2500
    assert meter.end() == pytest.approx(2.5)
    assert meters()["nvml"].reason == meter.scope
    with pytest.raises(I2IError, match="seconds: expected 2 to inf for NVML"):
        measure(lambda: None, seconds=1.0, meter="nvml")


def test_nvml_too_old_absent_or_failing(gpu, monkeypatch):
    gpu.counts = False
    with pytest.raises(UnavailableError, match=r"Volta or newer.*got NVIDIA Test GPU"):
        Nvml()
    with pytest.raises(UnavailableError, match="an NVIDIA GPU with its driver, got list index"):
        Nvml(index=3)

    def none():
        raise RuntimeError("NVML is unavailable.\nmore")

    gpu.driver.NVIDIAGPUs = none
    with pytest.raises(UnavailableError, match=r"got NVML is unavailable\.$"):
        Nvml()
    monkeypatch.setitem(sys.modules, "zeus", None)
    with pytest.raises(UnavailableError, match="zeus: expected an importable library"):
        Nvml()


# --- Alveo ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sensor", ["hwmon/hwmon3/power1_input", "xmc.u.2097153/hwmon/hwmon0/power1_input"])
def test_alveo_integrates_power(tmp_path, monkeypatch, sensor):
    card(tmp_path, vendor="0x8086", address="0000:00:02.0")
    file = card(tmp_path, sensor)
    meter = Alveo(tmp_path, period_s=60)  # the thread waits; only the two ends are sampled
    assert meter.scope == "Alveo card 0000:3b:00.1, all rails"
    clock = itertools.count(100, 4)
    monkeypatch.setattr(energy, "time", types.SimpleNamespace(perf_counter=lambda: next(clock)))
    meter.begin()
    file.write_text("30000000\n")
    assert meter.end() == pytest.approx(4 * (20 + 30) / 2)
    assert not meter.thread.is_alive()


def test_alveo_samples_between_the_ends(tmp_path):
    card(tmp_path)
    meter = Alveo(tmp_path, period_s=0.005)
    meter.begin()
    while len(meter.samples) < 3:  # at once on an idle machine, later on a busy one
        time.sleep(0.005)
    joules, samples = meter.end(), meter.samples
    assert len(samples) >= 4
    assert joules == pytest.approx(20 * (samples[-1][0] - samples[0][0]))


def test_alveo_stops_watching_when_the_work_fails(tmp_path):
    card(tmp_path)
    meter = Alveo(tmp_path, period_s=0.01)
    calls = iter([None])  # the warm-up passes
    meter.min_window_s = 0.01
    with pytest.raises(StopIteration):
        measure(lambda: next(calls), seconds=0.02, meter=meter)
    assert not meter.thread.is_alive()


def test_alveo_absent(tmp_path):
    with pytest.raises(UnavailableError, match="no card on the PCI bus"):
        Alveo(tmp_path)
    card(tmp_path, sensor=None)
    with pytest.raises(UnavailableError, match=r"a card without one.*XRT"):
        Alveo(tmp_path)
    assert not meters(root=tmp_path)["alveo"]


def test_systems_without_the_kernels_tree_have_no_such_meters(tmp_path):
    found = meters(root=tmp_path / "sys")  # macOS and Windows
    assert not found["rapl"] and "Only Linux" in found["rapl"].reason and not found["alveo"]


def test_not_measured_reads_as_such():
    assert str(Energy(None, reason="no meter")) == "not measured: no meter"
