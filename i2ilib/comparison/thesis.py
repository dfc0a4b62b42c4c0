"""The three tables in which the restoration thesis tells quality, filled with measured scores, its own beside them."""

from __future__ import annotations

import os
from collections.abc import Mapping

import pandas as pd
import torch

from ..deploy import published
from ..errors import I2IError
from ..metrics import Score, harmonic_mean, metric, score
from . import compare

PERCEPTUAL = {  # by column: our metric, and the thesis's
    "LPIPS-Comp ↓": ("lpips_comp", "lpips"),
    "LPIPS (alex) ↓": ("lpips_alex", None),
    "DISTS ↓": ("dists", "dists"),
    "BRISQUE ↓": ("brisque", "brisque"),
}
TRADITIONAL = {"SSIM ↑": ("ssim", "ssim"), "MS-SSIM ↑": ("ms_ssim", "ms_ssim"), "PSNR ↑": ("psnr", "psnr_db")}
VMAF = "vmaf_v0.6.1"
Clips = torch.Tensor | str | os.PathLike


def thesis_tables(
    reference: Clips,
    candidates: Mapping[str, Clips],
    *,
    device: str = "cpu",
    label: str = "",
    progress: bool = False,
    lpips_comp: str | os.PathLike | None = None,
) -> dict[str, pd.DataFrame]:
    """Perceptual metrics, traditional metrics and VMAF of named candidates, in the thesis's layout.

    The thesis's LPIPS is LPIPS-Comp, whose weights are not public, so LPIPS has a column of its own beside it. Which
    SSIM and which model of VMAF it used, it does not say; here they are :func:`~i2ilib.metrics.ssim` and v0.6.1. Its
    frames are its own (60 of them; 120 seconds of video for VMAF): read its rows for differences, not for their level.

    Args:
        reference: Frames (N, 3, H, W), sRGB codes in [0, 1], or a clip on disk.
        candidates: By name, of the same size and length; all tensors or all on disk, as the reference is.
        device: Where networks run.
        label: What was measured, for the captions.
        progress: Show a bar.
        lpips_comp: A file with the linear weights of :func:`~i2ilib.metrics.lpips_comp`.

    Returns:
        "perceptual", "traditional" and "vmaf": a row a candidate, "mean ± standard deviation over the frames" a cell,
        or why there is none; below them the thesis's own rows. The column ``origin`` tells them apart; ``attrs`` hold
        ``n``, ``device``, ``label`` and ``source``.

    Raises:
        I2IError: If there are no candidates, some are tensors and some on disk, or the sizes or lengths differ.
    """
    if not candidates:
        raise I2IError("candidates", expected="at least one", got="none")
    names = [name for name, _ in (PERCEPTUAL | TRADITIONAL).values()] + [VMAF]
    chosen = [metric(n).with_settings(linear=str(lpips_comp)) if n == "lpips_comp" and lpips_comp else n for n in names]
    kinds = {isinstance(one, torch.Tensor) for one in (reference, *candidates.values())}
    if len(kinds) > 1:
        raise I2IError("reference and candidates", expected="all tensors, or all on disk", got="both kinds")
    if isinstance(reference, torch.Tensor):
        target = reference.to(device)
        scores = {name: score(clip.to(device), target, chosen) for name, clip in candidates.items()}
    else:
        found = compare(reference, *candidates.values(), metrics=chosen, device=device, progress=progress)
        scores = {name: one.scores for name, one in zip(candidates, found.candidates, strict=True)}
    tables = {
        "perceptual": _means(scores, PERCEPTUAL),
        "traditional": _means(scores, TRADITIONAL),
        "vmaf": _vmaf({name: found[VMAF] for name, found in scores.items()}),
    }
    n = max(len(one.values) for found in scores.values() for one in found.values())
    for table in tables.values():
        table.attrs |= {
            "n": n,
            "device": device,
            "label": label,
            "source": published.table("thesis_quality").attrs["source"],
        }
    return tables


def _means(scores: Mapping[str, Mapping[str, Score]], columns: Mapping[str, tuple[str, str | None]]) -> pd.DataFrame:
    ours = {name: {head: str(found[ours]) for head, (ours, _) in columns.items()} for name, found in scores.items()}
    theirs = {
        name: {
            head: f"{row[key]:.4f} ± {row[f'{key}_sd']:.4f}" if key else "not in the thesis"
            for head, (_, key) in columns.items()
        }
        for name, row in published.table("thesis_quality").iterrows()
    }
    return _beside(ours, theirs)


def _vmaf(scores: Mapping[str, Score]) -> pd.DataFrame:
    heads = ("VMAF (mean) ↑", "VMAF (harmonic mean) ↑")
    ours = {
        name: dict.fromkeys(heads, str(one))
        if one.reason
        else dict(zip(heads, (f"{one.mean:.2f}", f"{harmonic_mean(one.values):.2f}"), strict=True))
        for name, one in scores.items()
    }
    theirs = {
        name: dict(zip(heads, (f"{row['vmaf_mean']:.2f}", f"{row['vmaf_harmonic_mean']:.2f}"), strict=True))
        for name, row in published.table("thesis_quality").iterrows()
    }
    return _beside(ours, theirs)


def _beside(ours: Mapping[str, dict], theirs: Mapping[str, dict]) -> pd.DataFrame:
    parts = [
        pd.DataFrame(rows).T.assign(origin=origin) for rows, origin in ((ours, "measured"), (theirs, "paper")) if rows
    ]
    return pd.concat(parts).rename_axis("candidate")
