"""A design as a result: found, simulated, written to a file that says all of it, and read back.

The file is JSON and stands by itself: it holds every stage's shape and factors, so that a generator of circuits needs
neither the network nor this library. What the numbers leave out is said in it: look-up tables, flip-flops, UltraRAM
and power are not modelled, and no clock was reached on any chip.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import I2IError, IntegrityError
from ..runtime import atomic_path
from . import cost, pareto
from .arguments import batches, positive, several
from .construct import Addend, Config, DesignSpace, Light, Pipeline, Stage
from .cost import Budget, Evaluation
from .graph import Graph
from .optimum import optimum
from .platforms import SOURCES, platform
from .search import search

FORMAT, VERSION = "i2i-design", 1
NOT_MODELLED = "LUT, FF, URAM and power are not modelled; the clock is an assumption, nothing was placed and routed"


@dataclasses.dataclass(frozen=True)
class Design:
    """A design, what it was made for, and what it does."""

    config: Config
    budget: Budget | None  # None: the smallest was asked for, whatever the platform
    evaluation: Evaluation
    network: str  # name
    sha256: str  # of the network's layers, of :func:`network_hash`
    simulated: tuple[float, ...] | None = None  # FPS by branch
    target: tuple[float, ...] | None = None  # FPS by branch that were asked for
    objective: str = "delivered"
    fitness: float | None = None
    bound: float | None = None  # what no design of the space exceeds; the fitness where it is the best

    @property
    def proven(self) -> bool:
        """Whether no design of its space is better (of a target: needs fewer DSPs)."""
        return self.target is not None or (self.bound is not None and self.bound <= self.fitness)


def network_hash(graph: Graph) -> str:
    """SHA-256 of a network's layers and outputs: shapes, kernels and wiring, not its weights' values."""
    told = json.dumps(dataclasses.asdict(graph), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(told.encode()).hexdigest()


def best(
    graph: Graph, space: DesignSpace, budget: Budget | str, batch_sizes: Sequence[int] | None = None, *,
    priorities: Sequence[float] | None = None, objective: str = "delivered", seed: int = 0, name: str = "network",
    seconds: float = 20.0, progress: Callable[[Iterable], Iterable] | None = None,
) -> Design:  # fmt: skip
    """The fastest design within a budget: a search, judged by the optimum, of which the better one counts.

    Args:
        graph: Of the network, for its hash.
        space: Constructed from it.
        budget: Or the name of a platform.
        batch_sizes: Copies of each branch; 1 each by default.
        priorities: Of the branches.
        objective: Of :func:`~i2ilib.fcad.search.search`.
        seed: Of the search.
        name: Of the network.
        seconds: That the proof may take where branches are many.
        progress: Wraps the iterations of the search, as ``tqdm`` does.
    """
    budget = platform(budget)
    found = search(space, budget, priorities, batch_sizes, seed=seed, objective=objective, progress=progress)
    proven = optimum(space, budget, priorities, batch_sizes, objective=objective, seconds=seconds)
    better = proven if proven.fitness > found.fitness else found
    bound = max(proven.bound, better.fitness)
    if bound <= better.fitness * (1 + 1e-9):
        bound = better.fitness
    return Design(better.config, budget, better.evaluation, name, network_hash(graph), None, None, objective,
                  better.fitness, bound)  # fmt: skip


def smallest_for(
    graph: Graph, space: DesignSpace, fps: float | Sequence[float], batch_sizes: Sequence[int] | None = None, *,
    budget: Budget | str | None = None, factors: str = "powers", name: str = "network",
) -> Design:  # fmt: skip
    """The design with the fewest DSPs that delivers so many frames a second, and of those the fewest block RAMs.

    Args:
        graph: Of the network, for its hash.
        space: Constructed from it.
        fps: Of every branch, or one number for each; a frame counts once for each copy.
        batch_sizes: Copies of each branch; 1 each by default.
        budget: What it must fit, if anything.
        factors: "powers", "rows" or "integers", of :mod:`~i2ilib.fcad.pareto`.
        name: Of the network.

    Raises:
        I2IError: If no factors are that fast, or the budget is too small: then with what it takes.
    """
    batch = batches(batch_sizes, len(space.pipelines))
    wanted = (fps,) * len(batch) if np.ndim(fps) == 0 else several(fps)
    if len(wanted) != len(batch) or not all(map(positive, wanted)):
        raise I2IError("fps", expected=f"a positive rate, or {len(batch)} of them", got=repr(fps))
    budget = None if budget is None else platform(budget)
    images, turns, group = cost.groups(space, batch)
    allowed = [images[p] * space.frequency_hz / wanted[p] for p in range(len(batch))]
    pace = {g: min(allowed[p] for p in group if group[p] == g) for g in group.values()}
    cycles = [int(pace[group[p]] / turns[p] * (1 + 1e-12)) for p in range(len(batch))]
    front = pareto.front(space, cycles, batch, factors=factors)
    least = f"{front.dsp.min()} DSPs and then {front.bram[front.dsp.argmin()]} 18-Kb BRAMs"
    fits = np.ones(len(front), bool)
    if budget:
        fits = (front.dsp <= budget.dsp) & (front.bram <= budget.bram) & (front.bandwidth <= budget.bandwidth)
    if not fits.any():
        got = f"{budget.dsp} DSPs, {budget.bram} 18-Kb BRAMs, {budget.bandwidth:.4g} bit/s"
        raise I2IError(
            f"budget {budget.name}".strip(), expected=f"room for the target: at least {least}", got=got,
            remedy="Take a larger platform, a lower rate, or factors='rows'.",
        )  # fmt: skip
    rows = np.flatnonzero(fits)
    row = int(rows[np.lexsort((front.bram[rows], front.dsp[rows]))[0]])
    config = front.config(row)
    return Design(config, budget, cost.evaluate(config), name, network_hash(graph), None, tuple(map(float, wanted)),
                  "target")  # fmt: skip


# --- the file --------------------------------------------------------------------------------------------------------


def to_json(design: Design) -> dict:
    """All of a design as plain data; the format of the file."""
    config, found = design.config, design.evaluation
    space, budget = config.space, design.budget
    branches = []
    for p, (pipeline, branch) in enumerate(zip(space.pipelines, found.branches, strict=True)):
        stages = []
        for s, stage in enumerate(pipeline.stages):
            cpf, kpf, h = config.factors[p][s]
            row = {"name": stage.name, "cpf": cpf, "kpf": kpf, "h": h, "cycles": branch.cycles[s]}
            row |= {"dsp": branch.stage_dsp[s], "bram18": branch.stage_bram[s]}
            stages.append({**row, "shape": {k: v for k, v in dataclasses.asdict(stage).items() if k != "name"}})
        branches.append({
            "name": pipeline.name, "batch": branch.batch, "dsp": branch.dsp, "bram18": branch.bram,
            "bandwidth_bit_s": branch.bandwidth, "efficiency": branch.efficiency, "fps_modelled": branch.fps,
            "fps_delivered": branch.delivered, "fps_simulated": design.simulated and design.simulated[p],
            "stages": stages,
        })  # fmt: skip
    given = budget and {
        "name": budget.name, "dsp": budget.dsp, "bram18": budget.bram, "bandwidth_bit_s": budget.bandwidth,
        "source": SOURCES.get(budget.name, "as given"),
    }  # fmt: skip
    return {
        "format": FORMAT, "version": VERSION, "network": {"name": design.network, "sha256": design.sha256},
        "platform": given, "frequency_hz": space.frequency_hz, "bits": space.bits, "objective": design.objective,
        "target_fps": design.target, "fitness": design.fitness, "bound": design.bound, "proven": design.proven,
        "dsp": found.dsp, "bram18": found.bram, "bandwidth_bit_s": found.bandwidth, "efficiency": found.efficiency,
        "branches": branches, "taps": space.taps, "not_modelled": NOT_MODELLED,
    }  # fmt: skip


def write(design: Design, path: str | os.PathLike) -> None:
    """Write the design file, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(to_json(design), indent=1) + "\n", encoding="utf-8")


def read(path: str | os.PathLike, graph: Graph | None = None) -> Design:
    """Read a design file back.

    Args:
        path: The file.
        graph: The network that it should be of.

    Raises:
        I2IError: If there is no such file.
        IntegrityError: If it is no design file, of a later version, of another network, or if its rates and resources
            are not those of its factors.
    """
    path = Path(path)
    if not path.exists():
        raise I2IError(str(path), expected="a design file", got="none")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        kind = data.get("format"), data.get("version")
    except (ValueError, AttributeError) as error:
        raise IntegrityError(str(path), expected="a design file", got=f"{type(error).__name__}: {error}") from None
    if kind != (FORMAT, VERSION):
        raise IntegrityError(str(path), expected=f"{FORMAT}, version {VERSION}", got=f"{kind[0]}, version {kind[1]}")
    try:
        design = _from_json(data)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        got = f"{type(error).__name__}: {error}"
        raise IntegrityError(str(path), expected="a whole design file", got=got) from None
    told = [[branch[key] for key in ("dsp", "bram18", "fps_modelled", "fps_delivered")] for branch in data["branches"]]
    made = [[branch.dsp, branch.bram, branch.fps, branch.delivered] for branch in design.evaluation.branches]
    if not np.allclose(told, made, rtol=1e-9):
        got = "others: the file was edited, or comes from another version of the model"
        raise IntegrityError(str(path), expected="the rates and resources of its factors", got=got)
    if graph is not None and network_hash(graph) != design.sha256:
        got = f"those of {design.network} ({design.sha256[:12]})"
        raise IntegrityError(str(path), expected=f"the network's layers ({network_hash(graph)[:12]})", got=got)
    return design


def _from_json(data: dict[str, Any]) -> Design:
    pipelines = tuple(
        Pipeline(branch["name"], tuple(_stage(row) for row in branch["stages"])) for branch in data["branches"]
    )
    taps = tuple((name, p, s) for name, p, s in data["taps"])
    space = DesignSpace(pipelines, data["bits"], data["frequency_hz"], taps)
    factors = [[(row["cpf"], row["kpf"], row["h"]) for row in branch["stages"]] for branch in data["branches"]]
    config = Config(space, factors, [branch["batch"] for branch in data["branches"]])
    given = data["platform"]
    budget = given and Budget(given["dsp"], given["bram18"], given["bandwidth_bit_s"], given["name"])
    simulated = tuple(branch["fps_simulated"] for branch in data["branches"])
    return Design(
        config, budget, cost.evaluate(config), data["network"]["name"], data["network"]["sha256"],
        None if None in simulated else simulated, data["target_fps"] and tuple(data["target_fps"]), data["objective"],
        data["fitness"], data["bound"],
    )  # fmt: skip


def _stage(row: dict[str, Any]) -> Stage:
    shape = {key: _tuples(value) for key, value in row["shape"].items()}
    shape["addends"] = tuple(Addend(_tuples(one["source"]), _tuples(one["size"])) for one in row["shape"]["addends"])
    shape["more"] = tuple(Light(**{k: _tuples(v) for k, v in one.items()}) for one in row["shape"]["more"])
    return Stage(row["name"], **shape)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def write_csv(design: Design, path: str | os.PathLike) -> None:
    """Write a row for each stage: shapes, factors, cycles and resources."""
    rows = []
    for branch in to_json(design)["branches"]:
        for row in branch["stages"]:
            shape = row["shape"]
            kept = ("in_channels", "out_channels", "height", "width", "stride", "groups", "macs", "weights")
            told = {"branch": branch["name"], "stage": row["name"], **{key: shape[key] for key in kept}}
            told["kernel"] = "x".join(map(str, shape["kernel"]))
            rows.append(told | {key: row[key] for key in ("cpf", "kpf", "h", "cycles", "dsp", "bram18")})
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def finn_folding(design: Design) -> dict[str, dict[str, int]]:
    """The factors as FINN's folding configuration, for a network that is one chain of plain convolutions.

    FINN's matrix-vector unit computes SIMD inputs for PE outputs at once: the cpf and kpf of here; it has nothing like
    h. Names are those that FINN gives from version 0.10 on (``MVAU_hls_0``, ... in running order), where no layer was
    turned into its RTL variant; its input generators take the same SIMD.

    Raises:
        I2IError: If a stage or the wiring has no counterpart.
    """
    config = design.config
    pipelines = config.space.pipelines

    def refuse(what: str, got: str) -> I2IError:
        remedy = "Write the design file instead: it holds all factors."
        return I2IError(what, expected="one chain of convolutions with h = 1, as FINN has it", got=got, remedy=remedy)

    if len(pipelines) != 1:
        raise refuse("FINN's folding", f"{len(pipelines)} branches")
    folding: dict[str, dict[str, int]] = {"Defaults": {}}
    for s, (stage, (cpf, kpf, h)) in enumerate(zip(pipelines[0].stages, config.factors[0], strict=True)):
        kind = "a transposed convolution" if stage.transposed else "groups" if stage.groups > 1 else ""
        joined = stage.addends or stage.products or (s and stage.sources != ((0, s - 1),))
        if kind or joined or h > 1 or stage.span:
            raise refuse(f"stage {stage.name}", kind or ("a join" if joined else f"h = {h}" if h > 1 else "a rewrite"))
        if stage.in_channels % cpf or stage.out_channels % kpf:
            raise refuse(f"stage {stage.name}", "factors that do not divide the channels")
        folding[f"MVAU_hls_{s}"] = {"PE": kpf, "SIMD": cpf}
        if stage.kernel != (1, 1):
            number = sum(name.startswith("ConvolutionInputGenerator") for name in folding)
            folding[f"ConvolutionInputGenerator_hls_{number}"] = {"SIMD": cpf}
    return folding
