"""Across branches (Algorithm 1 of F-CAD): a population of candidates looks for the best distribution of a budget.

A candidate is a matrix of shares: DSPs, block RAMs and bandwidth by branch. What each branch makes of its share is
Algorithm 2 (``ladder``), looked up for the whole population at once.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from ..errors import I2IError
from . import cost
from .arguments import batches, expect, one_each, weight, whole
from .construct import DesignSpace
from .cost import ROUNDING, Budget, Config, Evaluation
from .goal import Goal, fitness
from .ladder import Ladder, at_level, factors, finite, in_branch, log2, smallest, triples, worth
from .platforms import platform

__all__ = ["SearchResult", "at_level", "factors", "fitness", "in_branch", "search"]

LEAST_SHARE = 1e-3  # of a branch in the paper's evolution
STARTS = (0.45, 0.45, 0.1)  # repair: how often from the own best design, the global best, and the smallest
RELEASE = 0.1  # ... how often a share is released in part
WHOLE = 0.5  # ... how often one branch gets all that is free
PART = 0.25  # ... how often a branch takes but a part of the bandwidth that it gets
EVOLUTIONS = ("repair", "paper")
PAIRS = 50_000  # of designs of two branches that are looked at together
NOTHING = 1e-9  # of fitness


@dataclasses.dataclass(frozen=True, eq=False)
class SearchResult:
    """The design that was found, and how."""

    config: Config
    evaluation: Evaluation
    fitness: float
    history: tuple[float, ...]  # best fitness so far, by iteration; -inf while nothing fits
    convergence: int  # iteration, from 1, that improved on all before for the last time
    shares: np.ndarray  # (3, branches): of DSPs, block RAMs and bandwidth; rows sum to 1 at most


def search(
    space: DesignSpace, budget: Budget | str, priorities: Sequence[float] | None = None,
    batch_sizes: Sequence[int] | None = None, *,
    n: int = 20, p: int = 200, seed: int = 0, alpha: float = 0.1, evolve: str = "repair",
    objective: str = "built", penalty: str | None = None, progress: Callable[[Iterable], Iterable] | None = None,
) -> SearchResult:  # fmt: skip
    """Search a design within a budget (Algorithms 1 and 2).

    Args:
        space: Pipelines, precision and clock.
        budget: DSPs, 18-Kb block RAMs and bit/s of the whole design, or the name of a platform.
        priorities: Weight of each branch's frame rate, at least 0; 1 each by default.
        batch_sizes: Copies of each branch; 1 each by default.
        n: Iterations.
        p: Candidates.
        seed: Of the random numbers.
        alpha: Weight of the variance of the frame rates, at least 0 (:func:`~i2ilib.fcad.goal.fitness`).
        evolve: How candidates move. "paper": each share by random parts, U(0, 2), of the ways to the candidate's own
            best shares and to the global best ones; branches make of a share what Algorithm 2 makes of it. "repair": a
            candidate starts from what a design really *uses*, its own best, the global best or the smallest there is,
            releases random parts of a tenth of its shares, and what is free then goes to one branch or is spread at
            random. The first candidates start from level designs, in which all branches have one rate and no stage is
            faster than that needs, and from the smallest design; so where that fits all of them do. A branch takes the
            faster of Algorithm 2's design and the fastest level design in its share. The frame rate is a staircase of
            the shares: the paper's rule has to hit a step by chance, repair stands on one and climbs. At the end every
            two branches exchange what they have as long as that helps.
        objective: "built", "delivered" or "slowest", see :mod:`~i2ilib.fcad.goal`: branches that share stages do not
            run apart, so "built", which is the paper's, counts rates that never come out.
        penalty: "relative" or "paper", of :func:`~i2ilib.fcad.goal.fitness`; by default as ``evolve``, which is the
            paper's in both or in neither.
        progress: Wraps the iterations, as ``tqdm`` does.

    Returns:
        The best design, its evaluation and fitness, and the history.

    Raises:
        I2IError: If an argument is unusable, or nothing fits: then it names what is short and what the smallest design
            needs.
    """
    budget = platform(budget)
    if evolve not in EVOLUTIONS:
        raise I2IError("evolve", expected=" or ".join(map(repr, EVOLUTIONS)), got=repr(evolve))
    if penalty is None:
        penalty = "paper" if evolve == "paper" else "relative"
    goal = check_arguments(space, budget, priorities, batch_sizes, alpha, penalty, objective)
    batch, branches = goal.batch, len(goal.batch)
    for name, value, least in (("n", n, 1), ("p", p, 1), ("seed", seed, 0)):
        if not whole(value, least):
            raise I2IError(name, expected=f"a whole number from {least}", got=repr(value))
    repair = evolve == "repair"
    ladders = [Ladder(space, index, batch[index], budget.bandwidth, levels=repair) for index in range(branches)]
    given = np.array([budget.dsp, budget.bram, budget.bandwidth], float)[:, None]
    rng = np.random.default_rng(seed)

    def draw() -> np.ndarray:
        return rows_of(rng.random((p, 3, branches)))

    least = cost.evaluate(smallest(space, batch))
    needed = np.array([[branch.dsp, branch.bram, branch.bandwidth] for branch in least.branches]).T / given
    if repair and (needed.sum(1) <= ROUNDING).all():
        shares = _give(rng, np.broadcast_to(needed, (p, 3, branches)))
        level = _level_shares(space, ladders, given, goal, most=-(-p // 2))
        shares[: len(level)] = level
    else:
        shares = draw()
    own, own_spent, own_best = shares.copy(), shares.copy(), np.full(p, -np.inf)
    lead, lead_spent, best, winner = None, None, -np.inf, None
    history, convergence = [], 0
    for iteration in (progress or iter)(range(1, n + 1)):
        found, spent = _descend(space, ladders, shares, given)
        scores = np.where((found >= 0).all(1), goal.score(_cycles(ladders, found)), -np.inf)

        better = scores > own_best
        own_best[better], own[better], own_spent[better] = scores[better], shares[better], spent[better]
        # The global best is updated inside the loop over candidates: each sees the best up to itself.
        ahead = np.maximum.accumulate(np.concatenate([[best], scores]))
        changed = ahead[1:] > ahead[:-1]
        index = np.maximum.accumulate(np.where(changed, np.arange(p), -1))
        seen = index >= 0 if lead is None else np.ones(p, bool)  # who knows a design that fits
        leads = _pick(shares, index, lead)
        leads_spent = _pick(spent, index, lead_spent)
        if changed.any():
            last = index[-1]
            best, winner, convergence = float(ahead[-1]), found[last].copy(), iteration
            lead, lead_spent = shares[last].copy(), spent[last].copy()
        history.append(best)

        fresh = draw()
        if evolve == "paper":
            moved = _follow(rng, shares, own, leads)
        else:
            start = rng.choice(3, p, p=STARTS)[:, None, None]
            moved = _repair(rng, np.select([start == 0, start == 1], [own_spent, leads_spent], needed))
        shares = np.where(seen[:, None, None], moved, fresh)
    if winner is None:
        raise nothing_fits(budget, least, n, p)
    if repair:
        polished = _polish(space, ladders, winner, given, goal)
        score = float(goal.score(_cycles(ladders, polished[None]))[0])
        if score > best + NOTHING:
            winner, best, history[-1], convergence = polished, score, score, n
            lead = _uses(space, ladders, polished[None], given)[0]
    config = Config(space, tuple(triples(d.factors[row]) for d, row in zip(ladders, winner, strict=True)), batch)
    return SearchResult(config, cost.evaluate(config), best, tuple(history), convergence, lead)


def _descend(
    space: DesignSpace, ladders: Sequence[Ladder], shares: np.ndarray, given: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Algorithm 2 for every candidate and branch: (P, B) designs, -1 where none fits; what they use, as shares."""
    limits, spent = shares * given, np.empty_like(shares)
    found = np.full((len(shares), len(ladders)), -1)
    for index in space.order:
        ladder = ladders[index]
        widths = {(p, s): ladders[p].factors[found[:, p], s, 1] for p, s in ladder.fed}
        row = found[:, index] = ladder.descend(limits[:, :, index].T, widths)
        spent[:, :, index] = _spent(ladder, row, widths) / given[:, 0]
    return found, spent


def _spent(ladder: Ladder, row: np.ndarray, widths: dict[tuple[int, int], np.ndarray]) -> np.ndarray:
    """(P, 3): DSPs, block RAMs and bandwidth of a branch's designs."""
    bram = ladder.bram[row] + sum(table[row, log2(widths[source])] for source, table in ladder.fed.items())
    return np.stack([ladder.dsp[row], bram, ladder.least[row]], 1)


def _level_shares(
    space: DesignSpace, ladders: Sequence[Ladder], given: np.ndarray, goal: Goal, most: int
) -> np.ndarray:
    """(most at most, 3, branches): what the best level designs use that fit, all branches at one rate."""
    rates = np.unique(np.concatenate([ladder.fps[ladder.levels] for ladder in ladders]))
    rows = np.empty((len(rates), len(ladders)), int)
    for index, ladder in enumerate(ladders):
        slowest_first = ladder.levels[::-1]
        place = np.searchsorted(ladder.fps[slowest_first] * ROUNDING, rates)
        rows[:, index] = slowest_first[np.minimum(place, len(slowest_first) - 1)]
    spent = _uses(space, ladders, rows, given)
    fits = np.flatnonzero((spent.sum(2) <= ROUNDING).all(1))
    return spent[fits[np.argsort(-goal.score(_cycles(ladders, rows[fits])), kind="stable")[:most]]]


def _cycles(ladders: Sequence[Ladder], rows: np.ndarray) -> np.ndarray:
    """(P, branches): of the slowest stages of designs."""
    return np.stack([ladder.cycles[row] for ladder, row in zip(ladders, rows.T, strict=True)], 1)


def _uses(space: DesignSpace, ladders: Sequence[Ladder], rows: np.ndarray, given: np.ndarray,
          only: Iterable[int] | None = None) -> np.ndarray:  # fmt: skip
    """(P, 3, branches): what designs use, as shares, of some branches or of all."""
    spent = np.zeros((len(rows), 3, len(ladders)))
    for index in space.order if only is None else only:
        widths = {(p, s): ladders[p].factors[rows[:, p], s, 1] for p, s in ladders[index].fed}
        spent[:, :, index] = _spent(ladders[index], rows[:, index], widths) / given[:, 0]
    return spent


def _polish(
    space: DesignSpace, ladders: Sequence[Ladder], rows: np.ndarray, given: np.ndarray, goal: Goal
) -> np.ndarray:
    """Exchange between branches, two at a time: every pair of their designs, until none is better."""
    branches = len(ladders)
    kept = [worth(space, index, ladder) for index, ladder in enumerate(ladders)]
    pairs = list(itertools.combinations(range(branches), 2)) or [(0, 0)]
    best = float(goal.score(_cycles(ladders, rows[None]))[0])
    still = 0  # pairs since the last change
    while still < len(pairs):
        i, j = pairs[0]
        pairs.append(pairs.pop(0))
        touched = [q for q in space.order if q in (i, j) or {p for p, _ in ladders[q].fed} & {i, j}]
        rest = [q for q in range(branches) if q not in touched]
        room = ROUNDING - _uses(space, ladders, rows[None], given, rest)[0].sum(1)
        still += 1
        for part in np.array_split(kept[i], -(-len(kept[i]) * len(kept[j]) // PAIRS)):
            tried = np.repeat(rows[None], len(part) * len(kept[j]), axis=0)
            tried[:, i], tried[:, j] = np.repeat(part, len(kept[j])), np.tile(kept[j], len(part))
            if i == j:
                tried = np.unique(tried, axis=0)
            tried = tried[(_uses(space, ladders, tried, given, touched).sum(2) <= room).all(1)]
            if len(tried) and (scores := goal.score(_cycles(ladders, tried))).max() > best + NOTHING:
                rows, best, still = tried[scores.argmax()], float(scores.max()), 0
    return rows


def rows_of(weights: np.ndarray) -> np.ndarray:
    """Shares in proportion: rows that sum to 1."""
    return weights / weights.sum(-1, keepdims=True)


def _pick(candidates: np.ndarray, index: np.ndarray, before: np.ndarray | None) -> np.ndarray:
    """The candidates of an index, and where it is -1 the one from before (any, if there is none)."""
    chosen = candidates[index]
    if before is not None:
        chosen[index < 0] = before
    return chosen


def _follow(rng: np.random.Generator, shares: np.ndarray, own: np.ndarray, leads: np.ndarray) -> np.ndarray:
    """The paper's evolution: random distances towards the own best and the global best."""
    first, second = rng.uniform(0, 2, shares.shape), rng.uniform(0, 2, shares.shape)
    return rows_of(np.maximum(shares + first * (own - shares) + second * (leads - shares), LEAST_SHARE))


def _repair(rng: np.random.Generator, spent: np.ndarray) -> np.ndarray:
    """From what designs use: release random parts of some, and give away all that is free."""
    released = (rng.random(spent.shape) < RELEASE) * rng.random(spent.shape)
    return _give(rng, spent * (1 - released))


def _give(rng: np.random.Generator, kept: np.ndarray) -> np.ndarray:
    """What is free goes to one branch, or is spread at random; of bandwidth, some branches take a part only."""
    people, _, branches = kept.shape
    weights = rows_of(rng.random(kept.shape))
    one = np.eye(branches)[rng.integers(branches, size=people)][:, None]
    weights = np.where((rng.random(people) < WHOLE)[:, None, None], one, weights)
    # Where a ladder starts decides which stages round up: all that can change with a single branch.
    part = rng.random((2, people, branches))
    weights[:, 2] *= np.where(part[0] < PART, part[1], 1)
    return kept + np.maximum(1 - kept.sum(-1, keepdims=True), 0) * weights


# --- arguments -------------------------------------------------------------------------------------------------------


def check_arguments(
    space: DesignSpace, budget: Budget, priorities: Sequence[float] | None, batch_sizes: Sequence[int] | None,
    alpha: float, penalty: str = "relative", objective: str = "built",
) -> Goal:  # fmt: skip
    """The goal, with priorities and batch sizes for each branch; bad ones, and a bad budget, raise I2IError."""
    branches = len(expect("space", space, DesignSpace, "Construct it from a graph.").pipelines)
    if not weight(alpha):
        raise I2IError("alpha", expected="a finite weight, at least 0", got=repr(alpha))
    finite(budget)
    remedy = "Give 1 each to treat branches alike."
    priorities = one_each("priorities", priorities, branches, weight, "finite weights from 0", remedy)
    if not any(priorities):
        got = repr(tuple(priorities))
        raise I2IError("priorities", expected="at least one above 0", got=got, remedy=remedy)
    return Goal(space, batches(batch_sizes, branches), tuple(map(float, priorities)), alpha, penalty, objective)


def nothing_fits(budget: Budget, least: Evaluation, n: int = 0, p: int = 0) -> I2IError:
    """What to say when no design was found: which resource is short, and of how much."""
    names = {"dsp": "DSPs", "bram": "18-Kb BRAMs", "bandwidth": "bit/s"}
    short = [name for field, name in names.items() if getattr(least, field) > getattr(budget, field)]
    if not short:
        got = f"none in {n} iterations of {p} candidates, though the smallest design fits"
        return I2IError("search", expected="a candidate that fits", got=got, remedy="Raise n or p, or take 'repair'.")

    def told(amounts: Budget | Evaluation) -> str:
        return ", ".join(f"{getattr(amounts, field):.4g} {name}" if field == "bandwidth" else
                         f"{getattr(amounts, field)} {name}" for field, name in names.items())  # fmt: skip

    return I2IError(
        f"budget {budget.name}".rstrip(),
        expected=f"room for the smallest design, every factor at its least: {told(least)}",
        got=f"{told(budget)}: short of {' and '.join(short)}",
        remedy="Take a larger budget, smaller batch sizes, or fewer bits.",
    )
