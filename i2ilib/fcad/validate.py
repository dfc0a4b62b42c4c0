"""The cost model against the simulation: frame rates of a design, of classic networks, and where bandwidth runs out.

The paper holds its model against boards: KU115, four networks at 16 and at 8 bits (its Figs. 6 and 7). Its figures
print no values, so the errors that the text names stand beside ours, which are of a model against a simulation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from ..errors import I2IError
from .cost import Budget, Config, evaluate
from .platforms import PLATFORMS
from .simulate import Simulation, StageActivity, ancestors, simulate

if TYPE_CHECKING:
    import pandas as pd

    from .construct import DesignSpace

PAPER_ERRORS = {"FPS": (2.02, 2.89), "efficiency": (1.91, 3.96)}  # per cent, (mean, largest), of Sec. VI-B3

# The paper names the chip, not the memory beside it. AMD's KCU1500 board gives it four channels of 64-bit DDR4-2400.
KCU1500 = dataclasses.replace(PLATFORMS["KU115"], bandwidth=4 * 153.6e9, name="KU115, 4 x DDR4-2400")


def compare(config: Config, *, frames: int = 4, bandwidth: float = math.inf) -> pd.DataFrame:
    """A design by the model and by the simulation, with the cause of each difference.

    Args:
        config: The design.
        frames: Of :func:`i2ilib.fcad.simulate.simulate`.
        bandwidth: Of external memory, bit/s; the model's rate knows no limit.

    Returns:
        A row a branch: ``modelled FPS`` (Eq. 5), ``at one pace`` (the same where branches share stages),
        ``simulated FPS``; ``error (%)`` of Eq. 5 and ``error at one pace (%)``, above 0 where the model is too fast;
        and, for the stage of the branch that others hold up least, the cycles it loses per hundred of work:
        ``starved (%)``, ``blocked (%)``, ``weights (%)``. ``fill (%)``: what of the error goes without the depth of the
        data path. ``cause``: what most of the error comes from, in words. Borders cost nothing, as the model counts
        padding as work, and neither does a halo.
    """
    import pandas as pd

    modelled = evaluate(config)
    result = simulate(config, frames=frames, bandwidth=bandwidth)
    flat = simulate(config, frames=frames, bandwidth=bandwidth, depth=0)
    rows = []
    for p, branch in enumerate(config.space.names):
        own, together, simulated = modelled.fps[p], modelled.delivered[p], result.fps[p]
        stages = [stage for stage in result.stages if stage.branch == branch and stage.kind == "conv"]
        most = max(stages, key=lambda stage: stage.busy + stage.weights)  # nobody else holds it up
        lost = {f"{cause} (%)": 100 * getattr(most, cause) / most.busy for cause in ("starved", "blocked", "weights")}
        rows.append(
            {
                "branch": branch,
                "modelled FPS": own,
                "at one pace": together,
                "simulated FPS": simulated,
                "error (%)": 100 * (own / simulated - 1),
                "error at one pace (%)": 100 * (together / simulated - 1),
                "pace-maker": most.name,
                **lost,
                "fill (%)": 100 * own * (1 / simulated - 1 / flat.fps[p]),
                "cause": _cause(config, result, p, (own, together, simulated, flat.fps[p]), most),
            }
        )
    return pd.DataFrame(rows).set_index("branch")


SMALL = 0.002  # of a rate: an error that needs no cause
WORKS = {
    "input": "the network's input comes at one pixel a cycle, for {}",
    "output": "the output leaves at one pixel a cycle, behind {}",
    "join": "a map that waits for a join passes at one pixel a cycle, for {}",
    "upsample": "the up-sampling writes 32 channels of one pixel a cycle, behind {}",
    "pool": "the pooling writes 32 channels of one pixel a cycle, behind {}",
}


def _cause(
    config: Config, result: Simulation, p: int, rates: tuple[float, float, float, float], most: StageActivity
) -> str:
    """What most of the error of Eq. 5 comes from.

    Args:
        config: The design.
        result: Its simulation.
        p: Index of the branch.
        rates: Of the branch: by Eq. 5, at one pace, simulated, and simulated without the depth of the data path.
        most: The stage that is kept busy most of those of the branch.
    """
    space = config.space
    own, together, simulated, flat = rates
    error = own / simulated - 1
    if abs(error) < SMALL:
        return "none"
    if own / together - 1 > error / 2:
        return "shares stages with a slower branch, and waits for it"
    keys = _together(space, p)
    needed = {space.pipelines[q].stages[s].name for q, s in keys}
    works = [(one.busy, one.kind, one.name) for one in result.stages if one.name in needed and one.kind != "conv"]
    works += [(one.busy, one.kind, one.stage) for one in result.moves if one.stage in needed]
    busy, kind, name = max(works, default=(0, "", ""))
    short = any(one.busy > 1.02 * one.cycles for one in result.moves if one.stage in needed and one.busy == busy)
    thirsty = max((one for one in result.stages if one.name in needed), key=lambda one: one.weights)
    if thirsty.weights > max(most.starved, most.blocked) / 2 or (short and busy > most.busy):
        return f"external memory is too slow; {thirsty.name} waits"
    if busy > most.busy:
        return WORKS[kind].format(name)
    if flat / simulated - 1 > error / 2:
        return f"the depth of the data path, once a column of {most.name}"
    stages = [space.pipelines[q].stages[s] for q, s in sorted(keys)]
    uneven = [one.name for one in stages if one.step > 1 or one.pool or one.burst > 1]
    if uneven:
        return f"columns come in bursts, which short buffers do not smooth: a stride, pooling or shuffle at {uneven[0]}"
    return f"{most.name} waits for its neighbours, whose columns take other times"


def _together(space: DesignSpace, p: int) -> set[tuple[int, int]]:
    """The stages of a branch, and of all branches that share stages with it or with one of those."""
    waiting = [ancestors(space, q) for q in range(len(space.pipelines))]
    found = waiting.pop(p)
    while near := [one for one in waiting if one & found]:
        found = found.union(*near)
        waiting = [one for one in waiting if not one & found]
    return found


def bandwidth_sweep(
    config: Config, bandwidths: Iterable[float], *, frames: int = 3, arbitration: str = "fair"
) -> pd.DataFrame:
    """How a design slows down as external memory gets slower.

    Args:
        config: The design.
        bandwidths: bit/s.
        frames: Of :func:`i2ilib.fcad.simulate.simulate`.
        arbitration: Of the same.

    Returns:
        A row a bandwidth: ``bandwidth (Gbit/s)``, ``of the model's traffic`` (1 is what the model asks for),
        ``traffic (Gbit/s)``, FPS by branch, and ``weights (%)``: the share of time in which the stage that waits most
        for weights does so.
    """
    import pandas as pd

    asked = evaluate(config).bandwidth
    rows = []
    for bandwidth in bandwidths:
        result: Simulation = simulate(config, frames=frames, bandwidth=bandwidth, arbitration=arbitration)
        rows.append(
            {
                "bandwidth (Gbit/s)": bandwidth / 1e9,
                "of the model's traffic": bandwidth / asked,
                "traffic (Gbit/s)": result.traffic / 1e9,
                **dict(zip(config.space.names, result.fps, strict=True)),
                "weights (%)": 100 * max(stage.weights for stage in result.stages) / result.window_cycles,
            }
        )
    return pd.DataFrame(rows)


def benchmarks(
    *, budget: Budget = KCU1500, bits: Iterable[int] = (16, 8), classifier: bool = False, frames: int = 4, seed: int = 0
) -> pd.DataFrame:
    """The paper's Figs. 6 and 7 with a simulation in the place of the board.

    Each network gets the design that :func:`i2ilib.fcad.search.search` finds for it within the budget, at batch 1.

    Args:
        budget: Of the platform.
        bits: Precisions.
        classifier: Include fully connected layers; each of their weights serves once a frame, so bandwidth decides.
        frames: Of :func:`i2ilib.fcad.simulate.simulate`.
        seed: Of the search.

    Returns:
        A row a network and precision: the design, ``modelled FPS`` and ``simulated FPS``, ``efficiency (%)`` by the
        model, the error in per cent (the same for both, as the DSPs are), and the losses of :func:`compare`.
        ``attrs`` holds ``mean`` and ``largest`` of the errors' sizes, and ``paper``.
    """
    import pandas as pd

    from ..models.classic import CLASSIC, classic
    from .construct import construct
    from .graph import analyse
    from .search import search

    rows = []
    for name in CLASSIC:
        space = construct(analyse(*classic(name, classifier=classifier)))
        for width in bits:
            found = search(dataclasses.replace(space, bits=width), budget, seed=seed)
            (row,) = compare(found.config, frames=frames, bandwidth=budget.bandwidth).to_dict("records")
            rows.append(
                {
                    "network": name,
                    "bits": width,
                    "DSP": found.evaluation.dsp,
                    "BRAM (18 Kb)": found.evaluation.bram,
                    "bandwidth (Gbit/s)": found.evaluation.bandwidth / 1e9,
                    "efficiency (%)": 100 * found.evaluation.efficiency,
                    **{key: value for key, value in row.items() if "one pace" not in key},
                }
            )
    if not rows:
        raise I2IError("bits", expected="at least one precision", got="none")
    table = pd.DataFrame(rows).set_index(["network", "bits"])
    errors = np.abs(table["error (%)"])
    table.attrs = {"mean": float(errors.mean()), "largest": float(errors.max()), "paper": PAPER_ERRORS}
    return table
