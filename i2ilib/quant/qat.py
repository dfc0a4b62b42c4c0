"""Quantisation-aware training in the DPU's scheme: the network learns with its integers in the loop.

Weights are trained together with the range of every tensor: a threshold ``t``, learnt as ``log2 t``, whose next power
of two is where the integers end (Jain et al., Trained quantization thresholds, MLSys 2020, arXiv:1903.08066).
Rounding rules, gradients and the treatment of BatchNorm are those observed on AMD's quantiser, pytorch_nndct 3.5.0.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterable
from typing import get_args

import torch
from torch import fx, nn

from ..errors import I2IError
from ..train.loop import History, Source, fit
from ..train.parallel import World
from . import calibration
from . import graph as g
from .fixed_point import LARGEST, Kind, fake_quantise
from .ptq import Quantised, within_limits


def tqt(x: torch.Tensor, log2_threshold: torch.Tensor, *, kind: Kind = "activation", bits: int = 8) -> torch.Tensor:
    """``x`` on the grid of fix position ``fp = bits - 1 - ceil(log2 t)`` (at most 12), with gradients for both.

    With the scale ``s = 2^-fp``: the gradient of ``x`` passes where ``x / s`` rounds to an integer of the range and is
    zero outside; that of ``log2 t`` sums ``s · ln 2 · (round(x / s) - x / s)`` over the values inside and ``s · ln 2``
    times the integer at the end of the range over those outside, each weighted by the gradient from above. In that
    formula alone negative ties go up and positive ones to even.

    Args:
        x: Any shape, float32.
        log2_threshold: One number, float32.
        kind: "activation" and "input" round half up, "parameter" rounds half away from zero.
        bits: Of the integers.

    Returns:
        The shape of ``x``, float32: what :func:`i2ilib.quant.fake_quantise` gives at that position.

    Raises:
        I2IError: If ``log2_threshold`` is not one finite number, or ``kind`` is unknown.

    Example:
        >>> tqt(torch.tensor([-3.0, 0.3, 0.99]), torch.tensor(0.0)).tolist()
        [-1.0, 0.296875, 0.9921875]
    """
    if log2_threshold.numel() != 1 or not torch.isfinite(log2_threshold).all():
        got = log2_threshold.detach().flatten()[:3].tolist()
        raise I2IError("log2_threshold", expected="one finite number", got=got)
    return _TrainedThreshold.apply(x, log2_threshold, _positions(log2_threshold.reshape(1), bits)[0], kind, bits)


class _TrainedThreshold(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor, log2_threshold: torch.Tensor, fp: int, kind: Kind, bits: int) -> torch.Tensor:
        ctx.save_for_backward(x)  # a reference: rounding again costs less than keeping the error
        ctx.fp, ctx.half, ctx.shape = fp, 2 ** (bits - 1), log2_threshold.shape
        return fake_quantise(x, fp, kind=kind, bits=bits)

    @staticmethod
    def backward(ctx, above: torch.Tensor):
        half, within = ctx.half, torch.ops.aten.hardtanh_backward  # passes where -half - 1 < rounded < half, in one go
        q = ctx.saved_tensors[0] * 2.0**ctx.fp
        rounded = q.clamp(max=0).mul_(2).floor_().mul_(0.5).ceil_().add_(q.clamp(min=0).round_())
        for_x = within(above, rounded, -half - 1, half)
        if not ctx.needs_input_grad[1]:
            return for_x, None, None, None, None
        inside = within(q, rounded, -half - 1, half)
        error = rounded.clamp_(-half, half - 1).sub_(inside)
        for_threshold = torch.dot(above.flatten(), error.flatten()) * (2.0**-ctx.fp * math.log(2))
        return for_x, for_threshold.reshape(ctx.shape), None, None, None


def _positions(log2_thresholds: torch.Tensor, bits: int) -> list[int]:
    return [min(bits - 1 - int(n), LARGEST) for n in log2_thresholds.detach().ceil().tolist()]


def initial_threshold(x: torch.Tensor, kind: Kind = "activation") -> float:
    """``log2 t`` that training starts from where no result of :func:`i2ilib.quant.quantise` is at hand.

    Parameters: ``|mean| + 3 · standard deviation`` (of the population). Feature maps: the largest magnitude. AMD's
    quantiser has for them a rule on histograms that reduces to this below about 16600 elements; above, it may choose
    less, and is not reproduced here: start from post-training quantisation where that matters.

    Args:
        x: Any shape, float.
        kind: As in :func:`tqt`.

    Returns:
        ``log2 t``; minus infinity for a tensor of zeros.

    Raises:
        I2IError: If ``x`` is empty or not finite, or ``kind`` is unknown.
    """
    if kind not in get_args(Kind):
        raise I2IError("kind", expected=" or ".join(get_args(Kind)), got=repr(kind))
    if x.numel() == 0 or not torch.isfinite(x).all():
        got = "none" if x.numel() == 0 else "NaN or infinity"
        raise I2IError("initial_threshold", expected="finite values", got=got)
    x = x.detach().double()
    t = x.mean().abs() + 3 * x.std(correction=0) if kind == "parameter" else x.abs().max()
    return float(t.log2())


class Trainable(nn.Module):
    """A network whose every tensor is rounded as the DPU does it, ready to be trained.

    The float weights, BatchNorm's parameters and statistics, and one threshold a tensor are trained; dropout is gone.
    The network sees the weights folded with BatchNorm's *running* statistics and rounded. In training mode, until
    :meth:`freeze_batch_norm`, a convolution's result is then brought to the statistics of the batch, as float training
    has it; in evaluation mode nothing is: ``trainable.eval()(x)`` is ``trainable.quantised().fake(x)`` to the bit.

    Args:
        model: A network of the supported operators; it is copied, not changed.
        calibration_batches: As for :func:`i2ilib.quant.quantise`. The first gives height and width; without ``start``
            all of them, through the float network, give the thresholds (:func:`initial_threshold`).
        start: The same model after :func:`i2ilib.quant.quantise`, plain: its fix positions are kept until a threshold
            is trained out of its octave. Thresholds begin in the middle of it, ``log2 t = bits - 1 - fp - 1/2``:
            at its end, where the ceiling also gives ``fp``, the first step of training would move every other one.
        bits: Of every integer.

    Attributes:
        network: The captured float network; its ``state_dict`` has the model's names.
        log2_thresholds: One number a rounded tensor, in the order of ``fix_positions``.

    Raises:
        I2IError: If there is no batch or a wrong one, an operator is not supported, or ``start`` is of another network,
            other weights (equalised or bias-corrected ones too) or other bits.
    """

    def __init__(
        self, model: nn.Module, calibration_batches: calibration.Batches, *, start: Quantised | None = None, bits=8
    ):
        super().__init__()
        batches = calibration.read(calibration_batches)
        first = next(batches)
        captured = g.capture(model, first[:2], fold=False)
        self.network = fx.GraphModule(captured, captured.graph).requires_grad_()  # one that knows train() and eval()
        self.bits, self.example_shape = bits, tuple(first.shape[1:])
        self.batch_norm_frozen = False
        folded = self._folded()
        begin = _begin(folded, itertools.chain([first], batches)) if start is None else _resume(folded, start, bits)
        self.log2_thresholds = nn.Parameter(torch.tensor(begin).clamp(min=bits - 1 - LARGEST))
        self._structure = (folded,)  # for names and limits alone; in a tuple, not to be trained or saved

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The network's output on rounded numbers, (N, C', H', W') float32.

        Args:
            x: (N, C, H, W) float32 in the range that the network was trained on.
        """
        return _Pass(self).run(x)

    def weights(self) -> list[nn.Parameter]:
        """Weights and biases, BatchNorm's too: what an optimiser gets with the small learning rate."""
        return list(self.network.parameters())

    def thresholds(self) -> list[nn.Parameter]:
        """The thresholds, which need a learning rate of their own: they are logarithms, of size one."""
        return [self.log2_thresholds]

    def freeze_batch_norm(self, frozen: bool = True) -> None:
        """Train with the running statistics, those of deployment, and leave them as they are; or no longer."""
        self.batch_norm_frozen = frozen

    def freeze_thresholds(self, frozen: bool = True) -> None:
        """Keep the fix positions as they are; or train them again."""
        self.log2_thresholds.requires_grad_(not frozen)

    @property
    def fix_positions(self) -> dict[str, int]:
        """The fix position of every tensor at its present threshold, at most 12, within the limits of the shifts."""
        (folded,) = self._structure
        names, positions = (site.name for site in g.sites(folded)), _positions(self.log2_thresholds, self.bits)
        return within_limits(folded, dict(zip(names, positions, strict=True)))

    @torch.no_grad()
    def quantised(self) -> Quantised:
        """The network as it is deployed: BatchNorm folded with its present statistics, the present positions."""
        return Quantised(self._folded(), self.fix_positions, self.example_shape, bits=self.bits)

    def _folded(self) -> fx.GraphModule:
        folded = g.copy_graph(self.network)
        g.fold_batch_norm(folded)
        return folded.requires_grad_(False)


@torch.no_grad()
def _begin(folded: fx.GraphModule, batches: Iterable[torch.Tensor]) -> list[float]:
    """Thresholds from the float network: the largest that any batch asks for."""
    found: dict[str, list[float]] = {site.name: [] for site in g.sites(folded)}

    def look(site: g.Site, value: torch.Tensor) -> torch.Tensor:
        found[site.name].append(initial_threshold(value, site.kind))
        return value

    for batch in batches:
        g.interpret(folded, g.sites(folded), batch, look)
    return [max(values) for values in found.values()]


def _resume(folded: fx.GraphModule, start: Quantised, bits: int) -> list[float]:
    """Thresholds in the middle of the octaves of the positions of ``start``."""
    if start.bits != bits:
        raise I2IError("start", expected=f"{bits} bits", got=start.bits, remedy="Give both the same number.")
    sites = g.sites(folded)
    mine, theirs = _parameters(folded, sites), _parameters(start.folded, start.sites)
    if start.fix_positions.keys() != {site.name for site in sites} or any(
        mine[name].shape != theirs[name].shape or not torch.allclose(mine[name], theirs[name]) for name in mine
    ):
        remedy = "Quantise the model as it is, without equalise and correct_bias."
        raise I2IError("start", expected="this model, quantised", got="other tensors or other weights", remedy=remedy)
    return [bits - 1 - start.fix_positions[site.name] - 0.5 for site in sites]


def _parameters(graph: fx.GraphModule, sites: list[g.Site]) -> dict[str, torch.Tensor]:
    return {site.name: g.parameter(graph, site.node) for site in sites if site.kind == "parameter"}


class _Pass(fx.Interpreter):
    """One pass through the unfolded graph; a convolution waits for its BatchNorm and is computed with it."""

    def __init__(self, owner: Trainable):
        super().__init__(owner.network)
        (folded,) = owner._structure
        self.bits, self.live = owner.bits, owner.training and not owner.batch_norm_frozen
        self.positions = owner.fix_positions
        self.thresholds = dict(zip(self.positions, owner.log2_thresholds.unbind(), strict=True))
        self.sites = {site.node.name: site for site in g.sites(folded)}  # names outlive folding, nodes do not
        self.folded = {node.name: node for node in folded.graph.nodes}

    def on_grid(self, x: torch.Tensor, site: g.Site) -> torch.Tensor:
        threshold, fp = self.thresholds[site.name], self.positions[site.name]
        return _TrainedThreshold.apply(x, threshold, fp, site.kind, self.bits)

    def run_node(self, node: fx.Node):
        if node.op != "call_function":  # other parameters wait for their convolution, and its BatchNorm
            value, rounded = super().run_node(node), node.op == "placeholder" or any(map(g.adds_bias, node.users))
            return self.on_grid(value, self.sites[node.name]) if rounded else value
        arguments, _ = self.fetch_args_kwargs_from_env(node)
        if node.target is g.A.batch_norm.default:
            node, value = node.args[0], self.convolve(node.args[0], *arguments)
        elif node.target not in g.CONVOLUTIONS:
            value = super().run_node(node)
        elif next(iter(node.users)).target is g.A.batch_norm.default:
            return arguments
        else:
            value = self.convolve(node, arguments)
        site = self.sites.get(node.name)
        return value if site is None else self.on_grid(value, site)

    def convolve(self, node: fx.Node, arguments: tuple, *norm) -> torch.Tensor:
        """A convolution on rounded parameters, and its BatchNorm: folded, or on the statistics of the batch."""
        (x, weight, bias), options = (*arguments, None)[:3], arguments[3:]
        sites = [argument and self.sites[argument.name] for argument in (*self.folded[node.name].args, None)[1:3]]
        if norm:
            gamma, beta, mean, variance, _, momentum, eps, _ = norm
            deviation = torch.sqrt(variance.double() + eps)  # in double precision, as in deployment
            scale = gamma.double() / deviation
            channels = (1, -1, 1, 1) if node.target is g.A.conv_transpose2d.input else (-1, 1, 1, 1)
            folded = (weight.double() * scale.reshape(channels)).to(weight.dtype)
            if self.live:
                raw = node.target(x, weight, None, *options)
                batch_mean, batch_deviation = _observe(raw, bias, mean, variance, momentum, eps)
                value = node.target(x, self.on_grid(folded, sites[0]), None, *options)
                shift = self.on_grid(beta - gamma * batch_mean / batch_deviation, sites[1])
                rescale = (deviation / batch_deviation).to(value.dtype)
                return torch.addcmul(shift.reshape(-1, 1, 1), value, rescale.reshape(-1, 1, 1))
            offset = 0.0 if bias is None else bias.double()
            weight, bias = folded, ((offset - mean) * scale + beta).to(weight.dtype)
        bias = None if bias is None else self.on_grid(bias, sites[1])
        return node.target(x, self.on_grid(weight, sites[0]), bias, *options)


def _observe(raw, bias, mean, variance, momentum: float, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of a batch, (C,) each, of a convolution without its bias; the running statistics follow."""
    n = raw.numel() // raw.shape[1]
    if n < 2:
        remedy = "Give larger batches, or freeze BatchNorm."
        raise I2IError("live BatchNorm", expected="two values a channel or more", got=n, remedy=remedy)
    batch_variance, batch_mean = torch.var_mean(raw, (0, 2, 3), correction=0)
    with torch.no_grad():
        mean.lerp_(batch_mean if bias is None else batch_mean + bias, momentum)
        variance.lerp_(batch_variance * (n / (n - 1)), momentum)
    return batch_mean, torch.sqrt(batch_variance + eps)


# --- training --------------------------------------------------------------------------------------


class _FineTuning:
    """The task that :func:`i2ilib.train.fit` runs: one epoch of ``steps`` steps; it is its own source of batches."""

    epochs, world = 1, World()

    def __init__(self, trainable: Trainable, batches: Callable, loss: Callable, config: dict):
        self.trainable, self.source, self.loss, self.config, self.batches = trainable, batches, loss, config, self
        self.steps_per_epoch = config["steps"]
        self.frozen_from = math.ceil(config["freeze_from"] * config["steps"])
        groups = [
            {"params": trainable.weights(), "lr": config["lr"]},
            {"params": trainable.thresholds(), "lr": config["threshold_lr"]},
        ]
        self.modules, self.optimisers = {"network": trainable}, {"network": torch.optim.Adam(groups, fused=True)}

    def __call__(self, step: int) -> tuple[torch.Tensor, ...]:
        return self.source(step)

    def step(self, index: int, batch: tuple[torch.Tensor, ...]) -> dict[str, float]:
        frozen = index >= self.frozen_from
        self.trainable.train()
        self.trainable.freeze_thresholds(frozen)
        self.trainable.freeze_batch_norm(frozen or self.config["batch_norm"] == "frozen")
        x, target = batch
        optimiser = self.optimisers["network"]
        optimiser.zero_grad(set_to_none=True)
        loss = self.loss(self.trainable(x), target)
        if not torch.isfinite(loss):
            remedy = "Lower lr or threshold_lr, or look at the batch."
            raise I2IError("loss", expected="a finite number", got=f"{loss.item()} at step {index}", remedy=remedy)
        loss.backward()
        optimiser.step()
        return {"loss": loss.item()}

    def finish_epoch(self, epoch: int) -> dict[str, float]:
        return {}


def fine_tune(
    trainable: Trainable,
    batches: Source | Callable[[int], tuple[torch.Tensor, torch.Tensor]],
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    folder: str | os.PathLike,
    *,
    steps: int,
    lr: float,
    threshold_lr: float = 1e-2,
    batch_norm: str = "frozen",
    freeze_from: float = 0.5,
    **loop,
) -> History:
    """Train a network with its integers in the loop, by Adam; from the checkpoint in ``folder`` if there is one.

    Late in the training the thresholds are frozen: one that wants to be near a power of two crosses it back and forth,
    each crossing doubles or halves a step of the grid, and weights cannot settle on a grid that changes. Live
    BatchNorm is frozen with them, so that the network ends on the statistics that it is deployed with. A training
    that is interrupted and resumed ends in the same bits as one that is not.

    Args:
        trainable: Trained in place, and left in evaluation mode.
        batches: The batch of a step by its index: input and target, float32 NCHW.
        loss: Output and target to a scalar.
        folder: Holds ``checkpoint.safetensors``.
        steps: How many.
        lr: Learning rate of the weights. The paper fine-tunes for 10 to 15 steps at 5e-8.
        threshold_lr: Learning rate of the thresholds; near that of the weights none would move.
        batch_norm: "frozen" keeps the running statistics; "live" trains on those of each batch and lets them follow.
        freeze_from: Share of the steps after which thresholds and BatchNorm are frozen: 0 from the start, 1 never.
        **loop: ``save_every``, ``progress`` and ``on_step`` of :func:`i2ilib.train.fit`.

    Returns:
        ``loss`` of every step.

    Raises:
        I2IError: If an option is out of its range, or the loss is not finite.
        IntegrityError: If the checkpoint there is damaged or of another configuration.
        KeyboardInterrupt: If the training was asked to end.
    """
    if steps < 1:
        raise I2IError("steps", expected="at least 1", got=steps)
    if batch_norm not in ("frozen", "live"):
        raise I2IError("batch_norm", expected="'frozen' or 'live'", got=repr(batch_norm))
    if not 0 <= freeze_from <= 1:
        raise I2IError("freeze_from", expected="a share, 0 to 1", got=freeze_from)
    config = {"steps": steps, "lr": lr, "threshold_lr": threshold_lr, "batch_norm": batch_norm}
    config |= {"freeze_from": freeze_from, "bits": trainable.bits}
    task = _FineTuning(trainable, batches, loss, config)
    history = fit(task, folder, **loop)
    trainable.eval()
    return history
