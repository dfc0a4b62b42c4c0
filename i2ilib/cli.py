"""The command line, for people without a notebook: ``i2i info``, ``train``, ``matte``, ``upscale``, ``serve``, …"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from .errors import FrameError, I2IError, IntegrityError, UnavailableError

_PLOTS = (".png", ".jpg", ".pdf", ".svg")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0 if all went well, 1 if some frames failed, 2 for input that cannot be used, 130 if interrupted.
    """
    options = _parser().parse_args(argv)
    try:
        return options.command(options)
    except (I2IError, OSError) as error:  # OSError: a full disk, a folder that may not be written
        print(f"i2i: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = getattr(options, "keep", "all")  # `compare` keeps whole candidates, where it is told to
        end = {"all": "; the same command goes on from here", None: ""}.get(kept, "; what was scored whole is kept")
        print(f"i2i: interrupted{end}", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    from .deploy import BACKENDS

    parser = argparse.ArgumentParser(prog="i2i", description="Image-to-image networks, from float to an accelerator.")
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, run: Callable, about: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about)
        sub.add_argument("--json", action="store_true", help="print one JSON object for machines")
        sub.set_defaults(command=run)
        return sub

    command("info", _info, "Show what this machine offers, and why the rest is not here.")

    fetch = command("fetch", _fetch, "Download files that metrics and models need, checked by SHA-256, or list them.")
    fetch.add_argument(
        "names", nargs="*", metavar="NAME", help="of files; damaged ones are replaced (default: list all)"
    )
    fetch.add_argument("--all", action="store_true", help="download every file of the list")

    matte = command("matte", _matte, "Cut the figure out of frames: 16-bit alpha and RGBA for each.")
    matte.add_argument("frames", type=Path, help="a picture, a folder of pictures (PNG, JPEG, TIFF, EXR), or a video")
    matte.add_argument("out", type=Path, help="folder for alpha/ and rgba/; an interrupted run goes on there")
    matte.add_argument("--model", type=Path, required=True, metavar="WEIGHTS", help="a .safetensors file")
    backends = "\n".join(f"{name}: {about}" for name, (_, about) in BACKENDS.items())
    auto = "auto (default): the fastest that gives the exact integers on this machine\n"
    choices = ["auto", *BACKENDS]
    matte.add_argument("--backend", default="auto", choices=choices, metavar="NAME", help=auto + backends)
    matte.add_argument("--format", default="png", choices=["png", "tif", "exr"], help="of the results (default: png)")
    matte.add_argument(
        "--input-colour",
        default="auto",
        choices=["auto", "srgb", "linear"],
        help="of the frames (default: auto, linear for EXR and for PNG that says so, sRGB for all others)",
    )
    matte.add_argument(
        "--input-alpha",
        default="ignore",
        choices=["ignore", "unpremultiply"],
        help="what to do with an alpha channel in the frames (default: ignore it)",
    )
    matte.add_argument(
        "--rgba",
        default="auto",
        choices=["auto", "straight", "premultiplied"],
        help="colours of the RGBA (default: auto, premultiplied in EXR and straight in PNG and TIFF)",
    )
    matte.add_argument(
        "--matte-transfer",
        default="none",
        choices=["none", "srgb"],
        help="none: alpha is coverage (default); srgb: decode it by the sRGB curve, as the paper does",
    )
    matte.add_argument("--non-finite", default="error", choices=["error", "zero"], help="NaN and infinity in frames")
    matte.add_argument("--stride", type=int, default=256, help="step between patches, pixels (default: 256)")
    matte.add_argument("--feather", type=int, default=0, help="fade of overlapping patches, pixels (default: 0)")
    matte.add_argument("--batch", type=int, default=8, help="patches a batch (default: 8)")
    matte.add_argument("--layer", help="of OpenEXR files, or one channel as grey (default: the colour layer)")
    matte.add_argument("--overwrite", action="store_true", help="write again what is there")
    matte.add_argument(
        "--by-content",
        action="store_true",
        help="know a frame that has changed by its content, not by size and time (reads every frame)",
    )

    upscale = command("upscale", _upscale, "Enlarge a video, or pictures, by a network; all else of a video is kept.")
    upscale.add_argument("source", type=Path, help="a video, a picture or a folder of pictures")
    upscale.add_argument("out", type=Path, help="a video (.mp4, .mov, .mkv, .webm), or a folder for pictures")
    which = upscale.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", type=Path, metavar="WEIGHTS", help="an SRUNet or UNet: .safetensors, or their .pth")
    which.add_argument("--scale", type=int, metavar="N", help="no network: bicubic, so many times")
    upscale.add_argument("--backend", default="torch", choices=list(BACKENDS), metavar="NAME", help="default: torch")
    upscale.add_argument("--codec", default="auto", help="h264, hevc, av1, vp9 or ffv1 (default: what fits)")
    upscale.add_argument("--crf", type=int, help="quality of the codec: smaller is better and larger")
    upscale.add_argument("--compare", choices=["side", "split"], help="write another video, bicubic left")
    upscale.add_argument("--audit", action="store_true", help="prove what was kept, of a result that is there too")
    upscale.add_argument("--deinterlace", action="store_true", help="take interlaced video, and part its fields")
    upscale.add_argument(
        "--own-space", action="store_true", help="take PQ, HLG and the like, and enlarge their codes as they are"
    )
    upscale.add_argument("--tile", type=int, metavar="PIXELS", help="longest side of a tile (default: as memory lasts)")
    upscale.add_argument("--memory", type=float, metavar="GIB", help="for tiles (default: a quarter of the machine's)")
    upscale.add_argument("--batch", type=int, default=1, help="frames that go through the network at once (default: 1)")
    upscale.add_argument("--segment", type=int, default=96, metavar="FRAMES", help="what a kill may cost (default: 96)")
    upscale.add_argument("--overwrite", action="store_true", help="begin anew, whatever is there")

    degrade = command("degrade", _degrade, "Make pairs to train restoration on: frames, and the same small and coded.")
    degrade.add_argument("clips", type=Path, help="a video, a folder of pictures, or a folder of such")
    degrade.add_argument("out", type=Path, help="folder of the data set; what is finished there is kept")
    degrade.add_argument("--crf", type=int, default=23, help="constant rate factor of x265 (default: 23)")
    degrade.add_argument("--scale", type=int, default=2, choices=[2, 4], help="how much smaller (default: 2)")
    degrade.add_argument("--fps", type=float, help="frames per second (default: the video's; 24 of pictures)")

    train = command("train", _train, "Train a matting generator, or a network that restores video.")
    train.add_argument("data", type=Path, help="folder that holds train/fgr and train/pha; or one from i2i degrade")
    train.add_argument("out", type=Path, help="the .safetensors file to write; its training state lies beside it")
    train.add_argument("--task", default="matting", choices=["matting", "restoration"], help="default: matting")
    train.add_argument(
        "--clip",
        action="append",
        help="name of the clip (default: the first, and for restoration all that do not validate); several for one "
        "network",
    )
    train.add_argument(
        "--preset",
        choices=["smoke", "quick", "full"],
        help="sizes: seconds, minutes on two cores, the paper's (default: I2I_PRESET, else quick)",
    )
    train.add_argument("--epochs", type=int, help="passes over the patches")
    train.add_argument("--patches", type=int, help="patches an epoch, drawn anew each time")
    train.add_argument("--batch", type=int, help="patches a step in each process (default: the preset's; matting: 1)")
    train.add_argument("--width", type=int, help="filters of the first convolution; in matting of both networks")
    train.add_argument("--learning-rate", type=float, help="of Adam")
    only = {name: train.add_argument_group(f"only for {name}") for name in ("matting", "restoration")}
    only["matting"].add_argument("--stride", type=int, help="step between patches of a frame, pixels (default: 64)")
    only["matting"].add_argument(
        "--mode",
        choices=["auto", "composite", "foreground"],
        help="composite: over the background plate; foreground: the fgr frames alone, as the paper does "
        "(default: composite where there is a plate)",
    )
    only["restoration"].add_argument("--model", choices=["srunet", "unet"], help="default: srunet")
    only["restoration"].add_argument("--crf", type=int, help="of the frames (default: the only one there)")
    only["restoration"].add_argument(
        "--validation",
        action="append",
        metavar="CLIP",
        help="clip, or pattern of several, that chooses the epoch (default: the last tenth)",
    )
    only["restoration"].add_argument(
        "--perceptual",
        choices=["auto", "lpips_vgg", "vif_limited"],
        help="loss beside SSIM (default: LPIPS where its trunk is here, see i2i fetch, else vif_limited)",
    )
    train.add_argument(
        "--precision",
        default="auto",
        choices=["auto", "bf16", "float32"],
        help="of convolutions (default: as the training began, else bf16 where the machine computes in it)",
    )
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--memory", type=float, default=4.0, metavar="GIB", help="most for decoded frames (default: 4)")
    train.add_argument("--save-every", type=float, metavar="SECONDS", help="between checkpoints (default: 10 or more)")
    train.add_argument("--tensorboard", action="store_true", help="also write event files for TensorBoard")

    inspect = command("inspect", _inspect, "Say what of a model a DPU runs, what not, and what helps.")
    inspect.add_argument("model", type=Path, help="a .safetensors file")
    inspect.add_argument("--target", default="U50", help="a DPU, or U50 (default)")

    quantise = command("quantise", _quantise, "Find INT8 fix positions for a model and keep them with its weights.")
    quantise.add_argument("model", type=Path, help="a .safetensors file")
    quantise.add_argument("frames", type=Path, help="pictures or a video to calibrate on")
    quantise.add_argument("out", type=Path, help="the .safetensors file to write")
    quantise.add_argument("--layer", help="of OpenEXR files, or one channel as grey (default: the colour layer)")
    quantise.add_argument("--frames-used", type=int, default=4, help="spread over the clip (default: 4)")
    quantise.add_argument(
        "--tail-aware",
        action="store_true",
        help="choose the last position by the matte that comes out, not by the values before tanh",
    )
    quantise.add_argument("--onnx", type=Path, help="also write the network as ONNX with Q/DQ pairs")
    quantise.add_argument("--graph", type=Path, help="also describe the network, fix positions and shifts, as JSON")

    compare = command("compare", _compare, "Score pictures, image sequences or videos against a reference.")
    compare.add_argument("reference", type=Path, help="a picture, a folder of pictures, or a video")
    compare.add_argument("distorted", type=Path, nargs="+", help="what to score: as many frames of the same size")
    compare.add_argument(
        "--metrics", metavar="NAMES", help="with commas between (default: the usual ones); an unknown one lists all"
    )
    compare.add_argument(
        "--lpips-comp", type=Path, metavar="FILE", help="linear weights of your own for the metric lpips_comp"
    )
    compare.add_argument("--mattes", action="store_true", help="compare coverage: a grey picture or an alpha channel")
    compare.add_argument("--as-is", action="store_true", help="do not look for shifts and delays first")
    compare.add_argument("--layer", help="of OpenEXR files, or one channel as grey (default: the colour layer)")
    compare.add_argument("--device", default="cpu", help="where networks run: cpu (default) or cuda")
    compare.add_argument("--csv", type=Path, metavar="FILE", help="write every score of every frame")
    compare.add_argument("--plot", type=Path, metavar="FILE", help="draw them, with the worst frame and its error")
    compare.add_argument("--worst-by", metavar="NAME", help="metric that chooses the worst frame (default: the first)")
    compare.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="keep scores there; an interrupted run goes on with the next file"
    )

    design = command("design", _design, "Find an accelerator for a network: on a chip, or the smallest for a rate.")
    design.add_argument("network", metavar="NET", help="an ONNX file, or module.py:factory, see --input")
    design.add_argument("--input", action="append", metavar="N,C,H,W",
                        help="shape of an input of the factory's module, unless it gives (module, inputs)")  # fmt: skip
    design.add_argument("--platform", metavar="NAME", help="of a chip or card; an unknown one lists all")
    design.add_argument("--dsp", type=int, help="DSP slices, instead of a platform's or of those of --platform")
    design.add_argument("--bram", type=int, metavar="BLOCKS", help="block RAMs of 18 Kb")
    design.add_argument("--bandwidth", type=float, metavar="GB/S", help="of external memory")
    design.add_argument("--mhz", type=float, default=200.0, help="clock, an assumption (default: 200)")
    design.add_argument("--bits", type=int, default=8, choices=[8, 16], help="of maps and weights (default: 8)")
    design.add_argument("--fps", type=_numbers, metavar="RATE[,RATE]", help="find the smallest design that delivers it")
    design.add_argument("--priorities", type=_numbers, metavar="P,P", help="weight of each branch's rate (default: 1)")
    design.add_argument("--batch", type=_numbers, metavar="N,N", help="copies of each branch (default: 1)")
    design.add_argument("--objective", default="delivered", choices=["delivered", "slowest", "built"],
                        help="rates that come out (default), the lowest of them, or the paper's Eq. 5")  # fmt: skip
    design.add_argument("--fold", default="no", choices=["no", "exact", "rounded"],
                        help="compute convolutions behind doublings before them, with kernels as wide as their sums"
                        " (exact), or rounded to the old width")  # fmt: skip
    design.add_argument("--seed", type=int, default=0, help="of the search")
    design.add_argument("--seconds", type=float, default=20.0, help="for the proof of many branches (default: 20)")
    design.add_argument("--frames", type=int, default=3, help="that are simulated; 0: none (default: 3)")
    design.add_argument("--out", type=Path, metavar="FILE", help="write the design file (JSON)")
    design.add_argument("--csv", type=Path, metavar="FILE", help="write a row for each stage")
    design.add_argument("--plot", type=Path, metavar="FILE", help="draw its pipelines")
    design.add_argument("--finn", type=Path, metavar="FILE", help="write FINN's folding configuration, if there is one")

    serve = command("serve", _serve, "Serve networks to Nuke's MLClient node, or ask whether a server is well.")
    serve.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME=WEIGHTS",
        help="what to offer, several times for several (default: matting_actors, which comes with the project)",
    )
    serve.add_argument(
        "--backend",
        action="append",
        metavar="NAME",
        choices=choices,
        help="as of matte; several times for several precisions, the first is the knob's default (default: auto)",
    )
    serve.add_argument("--batch", type=int, default=8, help="patches a batch (default: 8)")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    serve.add_argument("--port", type=int, default=55555, help="0 takes a free one (default: 55555)")
    serve.add_argument("--metrics-port", type=int, metavar="PORT", help="page for Prometheus, on this machine alone")
    serve.add_argument("--most-mib", type=int, default=1024, metavar="MIB", help="of one request (default: 1024)")
    serve.add_argument("--memory", type=float, metavar="GIB", help="of all requests (default: an eighth of it)")
    serve.add_argument("--clients", type=int, default=256, help="at once (default: 256)")
    serve.add_argument("--check", action="store_true", help="serve nothing: status 0 if a server answers there")

    send = command("send", _send, "Send a picture through a server, as Nuke would.")
    send.add_argument("frame", type=Path, help="a picture")
    send.add_argument("out", type=Path, help="the picture to write: .exr (linear), .png, .tif")
    send.add_argument("--model", metavar="NAME", help="of the server (default: its first)")
    send.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="a knob of the model")
    send.add_argument("--matte", action="store_true", help="the reply is coverage: write its first plane as it is")
    send.add_argument("--layer", help="of an OpenEXR file (default: the colour layer)")
    send.add_argument("--host", default="127.0.0.1")
    send.add_argument("--port", type=int, default=55555)
    send.add_argument("--retries", type=int, default=3, help="if the server goes away or is not there (default: 3)")
    send.add_argument("--seconds", type=float, default=300.0, help="most for the reply (default: 300)")

    bench = command("bench", _bench, "Time a model on the backends that are here, each verified before.")
    bench.add_argument("model", type=Path, help="a .safetensors file; INT8 backends need its fix positions")
    bench.add_argument("--backend", nargs="+", choices=list(BACKENDS), metavar="NAME", help="default: all that can run")
    bench.add_argument("--batch", type=int, default=8, help="patches a batch (default: 8)")
    bench.add_argument("--patch", type=int, default=256, help="height and width of a patch, pixels (default: 256)")
    bench.add_argument("--n", type=int, default=10, help="rounds; the median is told (default: 10)")
    return parser


def _say(options: argparse.Namespace, result: dict, text: str) -> None:
    told = json.dumps(result) if options.json else text
    encoding = sys.stdout.encoding or "utf-8"  # names of files may hold what it has not
    print(told.encode(encoding, "backslashreplace").decode(encoding))


def _info(options: argparse.Namespace) -> int:
    from .deploy import backends, fastest_exact
    from .runtime import OPTIONAL, available, this_machine, versions

    machine, (default, why) = this_machine(), fastest_exact()
    result = {
        "cpu": str(machine),
        "machine": machine.describe(),
        "versions": versions(),
        "default_backend": {"name": default, "reason": why},
        "backends": {name: {"ok": bool(a), "reason": a.reason} for name, a in backends().items()},
        "optional": {name: {"ok": bool(a), "reason": a.reason} for name in OPTIONAL for a in [available(name)]},
    }
    units = ", ".join(result["machine"]["units"]) or "no vector or matrix unit that is known here"
    lines = [
        f"{machine}, {machine.memory_gib:g} GiB",
        f"units: {units}",
        f"default backend: {default}: {why}",
        "",
    ]
    for title in ("backends", "optional"):
        lines += [title] + [
            f"  {'yes' if v['ok'] else 'no ':3}  {k:19} {v['reason']}" for k, v in result[title].items()
        ]
    _say(options, result, "\n".join(lines))
    return 0


def _fetch(options: argparse.Namespace) -> int:
    from .runtime import fetch, fetched, registry

    entries = registry()
    wanted = list(entries) if options.all else options.names
    for name in wanted:
        fetch(name, mend=True)
    files = {}
    for name in wanted or entries:
        path, state = None, "here"
        try:
            path = str(fetched(name))
        except UnavailableError:
            state = "absent"
        except IntegrityError:
            state = "damaged"
        files[name] = {"state": state, "path": path, **entries[name]}
    lines = [
        f"{f['state']:8} {name:27} {f['size']:11,} bytes  {f['about']}; {f['licence']}" for name, f in files.items()
    ]
    _say(options, {"files": files}, "\n".join(lines))
    return 0


def _matte(options: argparse.Namespace) -> int:
    from . import models
    from .deploy import fastest_exact, open_runner
    from .frames import open_clip
    from .pipeline import MatteOptions, plan_clip, run_plan

    names = [field.name for field in dataclasses.fields(MatteOptions)]
    chosen = MatteOptions(**{name: getattr(options, name) for name in names if hasattr(options, name)})
    clip = open_clip(options.frames, layer=options.layer)
    backend, why = fastest_exact() if options.backend == "auto" else (options.backend, "as asked for")
    meta = models.load(options.model)[1]
    chosen = dataclasses.replace(chosen, q_in=meta.get("q_in", 1), q_out=meta.get("q_out", 1))
    plan = plan_clip(
        clip,
        options.out,
        chosen,
        suffix="." + options.format,
        premultiply={"auto": None, "straight": False, "premultiplied": True}[options.rgba],
        identity={"weights": _sha256(options.model), "backend": backend},
        overwrite=options.overwrite,
        by_content=options.by_content,
    )
    with contextlib.ExitStack() as stack:
        runner = None
        if plan.wanted:  # a finished job compiles nothing
            opened, _ = open_runner(
                backend, options.model, patch=chosen.patch, calibration=lambda _: _calibration(clip, chosen)
            )
            runner = stack.enter_context(opened)
            runner.prepare((chosen.batch, 3, chosen.patch, chosen.patch))
        if not options.json:
            print(f"backend {backend}: {why}")
        report = run_plan(runner, plan)
    result = dataclasses.asdict(report) | {"out": str(options.out), "backend": backend}
    lines = [f"{len(report.written)} written, {len(report.kept)} kept, {len(report.failed)} failed; {options.out}"]
    lines += [f"note: {note}: {_some(frames)}" for note, frames in report.notes.items()]
    if report.passed_over:
        lines.append(f"passed over, as no pictures: {_some(report.passed_over)}")
    _say(options, result, "\n".join(lines))
    return 1 if report.failed else 0


def _upscale(options: argparse.Namespace) -> int:
    from .pipeline.enlarge import open_network
    from .pipeline.upscale import UpscaleOptions, calibration, upscale

    names = [field.name for field in dataclasses.fields(UpscaleOptions)]
    chosen = {name: getattr(options, name) for name in names if hasattr(options, name)}
    chosen = UpscaleOptions(**chosen, memory_gib=options.memory)
    model = options.scale if options.model is None else options.model
    how = {"backend": options.backend, "calibration": lambda: calibration(options.source), "progress": True}
    with open_network(model, **how) as network:
        report = upscale(options.source, options.out, network, chosen, overwrite=options.overwrite, audit=options.audit)
    rate = report.written / report.seconds if report.seconds else 0.0
    lines = [f"{report.written} written ({rate:.2f}/s), {report.kept} kept, {len(report.failed)} failed; {report.out}"]
    lines += [f"beside bicubic: {report.compare}"] if report.compare else []
    lines += [f"note: {note}" for note in report.notes] + [str(check) for check in report.checks]
    checks = [check._asdict() for check in report.checks]
    _say(options, dataclasses.asdict(report) | {"checks": checks, "ok": report.ok}, "\n".join(lines))
    return 0 if report.ok else 1


def _some(names: Sequence[str]) -> str:
    """Names, or some of them and how many there are."""
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more"


def _degrade(options: argparse.Namespace) -> int:
    from .datasets import bvi_dvc

    settings = {"crf": options.crf, "scale": options.scale, "fps": options.fps, "progress": not options.json}
    clips = list(bvi_dvc.degrade(options.clips, options.out, **settings))
    told = {state: [clip for clip in clips if clip.state == state] for state in ("written", "kept", "failed")}
    lines = [", ".join(f"{len(found)} {state}" for state, found in told.items()) + f"; {options.out}"]
    lines += [f"failed: {clip.name}: {clip.reason}" for clip in told["failed"]]
    notes = {note: [clip.name for clip in clips if note in clip.notes] for clip in clips for note in clip.notes}
    lines += [f"note: {note}: {_some(names)}" for note, names in notes.items()]
    _say(options, {"out": str(options.out), "clips": [dataclasses.asdict(clip) for clip in clips]}, "\n".join(lines))
    return 1 if told["failed"] else 0


_ONLY = {
    "matting": ("stride", "mode"),
    "restoration": ("model", "crf", "validation", "perceptual"),
}  # options of i2i train


def _train(options: argparse.Namespace) -> int:
    from .runtime import peak_memory_gib, start
    from .train import matting_config, parallel, restoration_config, train_matting, train_restoration

    other = "restoration" if options.task == "matting" else "matting"
    if given := [f"--{name}" for name in _ONLY[other] if getattr(options, name) is not None]:
        raise I2IError(given[0], expected=f"--task {other}", got=f"--task {options.task}")
    run = start(options.seed, preset=options.preset)
    names = ("epochs", "patches", "batch", "width", "learning_rate", "stride", "mode", "model", "perceptual")
    names += ("precision", "seed")
    chosen = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if options.task == "matting":
        train, configure, data = train_matting, matting_config, {"clip": options.clip}
        if options.width is not None:
            chosen["discriminator_width"] = options.width
    else:
        train, configure = train_restoration, restoration_config
        data = {"clips": options.clip, "validation": options.validation, "crf": options.crf}
    with parallel.world(run.device) as (world, device), _progress(options, world.leads) as follow:
        config = configure(run.preset, **chosen)
        history = train(
            options.data,
            options.out,
            dataclasses.replace(config, batch=config.batch * world.size),
            device=device,
            world=world,
            budget_bytes=int(options.memory * 2**30),
            save_every=options.save_every,
            progress=not options.json,
            **data,
            **follow,
        )
    if world.leads:
        result = {name: values[-1] for name, values in history.steps.items()} | {
            "steps": len(history),
            "seconds": history.seconds,
            "waiting": history.waiting,
            "epochs": history.epochs,
            "processes": world.size,
            "precision": history.config["precision"],
            "peak_memory_gib": peak_memory_gib(),
            "model": str(options.out),
        }
        precision, folder = result["precision"], options.out.with_suffix("")
        text = f"weights, trained in {precision}: {options.out}; curves and samples: {folder}/progress.png"
        if options.task == "restoration":
            result["perceptual"] = history.config["perceptual"]
            apart = max(scores["folded_within"] for scores in history.epochs)
            text += f"\nperceptual loss: {result['perceptual']}; folding changed the output by {apart:.1e} at most"
        _say(options, result, text)
    return 0


@contextlib.contextmanager
def _progress(options: argparse.Namespace, leads: bool) -> Iterator[dict[str, Callable]]:
    """What shows a training: a picture after every epoch and, on request, event files."""
    import matplotlib
    from matplotlib import pyplot as plt

    from . import plots
    from .plots.restoration import restoration
    from .train.events import events

    drawn = {"matting": plots.training, "restoration": restoration}[options.task]
    matplotlib.use("agg")  # files, no windows
    folder = options.out.with_suffix("")

    def draw(task, history) -> None:
        figure = drawn(history.steps, history.epochs, task.samples)
        plots.save(figure, folder / "progress.png")
        plt.close(figure)

    if not (options.tensorboard and leads):
        yield {"on_epoch": draw}
        return
    with events(folder / "events") as (on_step, on_epoch):

        def both(task, history) -> None:
            draw(task, history)
            on_epoch(task, history)

        yield {"on_step": on_step, "on_epoch": both}


def _inspect(options: argparse.Namespace) -> int:
    from . import models
    from .quant import inspect

    found = inspect(models.load(options.model)[0], options.target)
    rows = [dataclasses.asdict(row) for row in found.rows]
    result = {"target": found.target.name, "verdict": found.verdict, "pieces": found.splits, "operators": rows}
    _say(options, result, str(found))
    return 0


def _quantise(options: argparse.Namespace) -> int:
    from . import models
    from .frames import open_clip
    from .pipeline import MatteOptions
    from .quant import quantise, tail_aware

    model, meta = models.load(options.model)
    clip = open_clip(options.frames, layer=options.layer)
    batches = _calibration(clip, MatteOptions(q_in=meta.get("q_in", 1)), frames=options.frames_used)
    quantised = quantise(model, batches, progress=not options.json)
    if options.tail_aware:
        quantised = tail_aware(quantised, batches)
    meta |= {"fix_positions": quantised.fix_positions}
    models.save(options.out, model, **meta)
    if options.onnx:
        quantised.to_onnx(options.onnx)
    if options.graph:
        quantised.to_json(options.graph)
    files = {"model": str(options.out), "onnx": str(options.onnx or ""), "graph": str(options.graph or "")}
    result = files | {"fix_positions": quantised.fix_positions}
    _say(options, result, f"{len(quantised.fix_positions)} fix positions kept in {options.out}")
    return 0


def _compare(options: argparse.Namespace) -> int:
    from .comparison import MATTES, PICTURES, compare
    from .runtime import atomic_path

    usual = list(MATTES if options.mattes else PICTURES)
    names = usual if options.metrics is None else [name.strip() for name in options.metrics.split(",")]
    if options.worst_by and options.worst_by not in names:
        raise I2IError("--worst-by", expected="one of " + ", ".join(names), got=repr(options.worst_by))
    for path in filter(None, (options.csv, options.plot, options.keep and options.keep / "scores.json")):
        _writable(path)
    if options.plot and options.plot.suffix.lower() not in _PLOTS:
        raise I2IError(str(options.plot), expected="a name ending in " + ", ".join(_PLOTS), got=options.plot.suffix)
    found = compare(
        options.reference,
        *options.distorted,
        metrics=_metrics(names, options.lpips_comp),
        mattes=options.mattes,
        check=not options.as_is,
        layer=options.layer,
        device=options.device,
        keep=options.keep,
        progress=not options.json,
    )
    _say(options, found.describe(), found.text())
    if options.csv:
        with atomic_path(options.csv) as temporary:
            found.frames().to_csv(temporary, index=False)
    if options.plot:
        import matplotlib

        from .plots import save, style
        from .plots.comparison import comparison

        matplotlib.use("agg")  # files, no windows
        style()
        every = list(found.clips[0].names)  # a frame that failed leaves a gap
        tables = {c.name: c.per_frame().reindex(every) for c in found.candidates}
        save(comparison(tables, found.worst_frame(options.worst_by)), options.plot)
    return 1 if any(candidate.failed for candidate in found.candidates) else 0


def _writable(path: Path) -> None:
    """Refuse a place that cannot be written, before the work is done."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise I2IError(str(path.parent), expected="a folder to write to", got=error.strerror) from None
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        got = "a folder" if path.is_dir() else "a folder that may not be written"
        raise I2IError(str(path), expected="a file to write", got=got)


def _metrics(names: Sequence[str], lpips_comp: Path | None) -> list:
    """Metrics by name, LPIPS-Comp with the weights that were given."""
    from .metrics import metric

    if lpips_comp and "lpips_comp" not in names:
        raise I2IError("--lpips-comp", expected="lpips_comp among --metrics", got=", ".join(names))
    if lpips_comp and not lpips_comp.is_file():
        raise I2IError("--lpips-comp", expected="a file", got=f"none at {lpips_comp}")
    given = {"lpips_comp": {"linear": str(lpips_comp)}} if lpips_comp else {}
    return [metric(name).with_settings(**given.get(name, {})) for name in names]


def _bench(options: argparse.Namespace) -> int:
    import torch

    from . import models
    from .deploy import INTEGER, backends, bench, open_runner, verify
    from .quant import with_positions
    from .runtime import start

    for name in ("batch", "patch", "n"):
        if getattr(options, name) < 1:
            raise I2IError(f"--{name}", expected="1 or more", got=getattr(options, name))
    run = start(0)
    model, meta = models.load(options.model)
    there = backends()
    names = options.backend or [name for name, here in there.items() if here and name not in INTEGER]
    if options.backend is None and meta.get("fix_positions"):
        names += [name for name in INTEGER if there[name]]
    batch = torch.rand(options.batch, getattr(model.config, "in_channels", 3), options.patch, options.patch)
    batch = (batch * 2 - 1) * meta.get("q_in", 1)
    with torch.inference_mode():
        reference = {False: model(batch)}
    rows = {}
    with contextlib.ExitStack() as stack:
        runners = {
            name: stack.enter_context(open_runner(name, options.model, patch=options.patch)[0]) for name in names
        }
        for name, runner in runners.items():
            integers = name in INTEGER
            if integers and True not in reference:
                reference[True] = with_positions(model, meta["fix_positions"], batch).integer(batch)
            against = "exact integers" if integers else "PyTorch float32"
            rows[name] = {"apart": verify(runner, reference[integers], batch), "against": against}
        for name, row in bench(runners, batch, n=options.n, progress=not options.json).items():
            rows[name] |= row
    lines = [f"{run.device_name}, {run.threads} threads; batch {options.batch}, median of {options.n}"]
    lines += [
        f"  {name:20} {row['patches_per_s']:8.1f}/s {row['ms_per_patch']:9.2f} ms ({row['p5']:.2f} to {row['p95']:.2f})"
        f", at most {row['apart']:.1e} from {row['against']}"
        for name, row in rows.items()
    ]
    _say(options, {"model": str(options.model), "run": run.describe(), "backends": rows}, "\n".join(lines))
    return 0


def _design(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from .fcad import construct, fold, simulate
    from .fcad.design import best, finn_folding, smallest_for, to_json, write, write_csv
    from .runtime import atomic_path

    for path in (options.out, options.csv, options.plot, options.finn):
        if path is not None:
            _writable(path)
    if options.plot and options.plot.suffix.lower() not in _PLOTS:
        raise I2IError("--plot", expected="a file that ends in " + ", ".join(_PLOTS), got=options.plot.name)
    if options.frames and options.frames < 2:
        raise I2IError("--frames", expected="0, or 2 or more", got=options.frames)
    graph, name = _network(options)
    if options.fold != "no":
        graph = fold(graph, exact=options.fold == "exact")
    space = construct(graph, bits=options.bits, frequency_hz=1e6 * options.mhz)
    budget, batch = _budget(options), options.batch and [int(n) if n == int(n) else n for n in options.batch]
    if options.fps:
        fps = options.fps if len(options.fps) > 1 else options.fps[0]
        found = smallest_for(graph, space, fps, batch, budget=budget, name=name)
    elif budget is None:
        raise I2IError("budget", expected="--platform, or --dsp and --bram, or --fps", got="none of them")
    else:
        bar = functools.partial(tqdm, desc="searching", disable=options.json or not sys.stderr.isatty(), leave=False)
        found = best(graph, space, budget, batch, priorities=options.priorities, objective=options.objective,
                     seed=options.seed, name=name, seconds=options.seconds, progress=bar)  # fmt: skip
    if options.frames:
        bandwidth = found.budget.bandwidth if found.budget else float("inf")
        ran = simulate(found.config, frames=options.frames, bandwidth=bandwidth)
        found = dataclasses.replace(found, simulated=ran.fps)
    if options.finn:
        with atomic_path(options.finn) as temporary:
            temporary.write_text(json.dumps(finn_folding(found), indent=1) + "\n", encoding="utf-8")
    if options.out:
        write(found, options.out)
    if options.csv:
        write_csv(found, options.csv)
    if options.plot:
        _plot_design(found, options.plot)
    host = [f"  left to the host: {', '.join(graph.host)}"] if graph.host else []
    _say(options, to_json(found) | {"host": graph.host}, "\n".join([_told(found), *host]))
    return 0


def _told(found) -> str:
    """A design as a table, and how good it is."""
    from .fcad.design import NOT_MODELLED

    space, result = found.config.space, found.evaluation
    stages = sum(len(pipeline.stages) for pipeline in space.pipelines)
    lines = [
        f"{found.network}: {stages} stages in {len(space.pipelines)} branches, {space.bits} bits at"
        f" {space.frequency_hz / 1e6:g} MHz",
        f"  {'branch':20} {'batch':>5} {'DSP':>6} {'BRAM18':>6} {'FPS':>10} {'delivered':>10} {'simulated':>10}",
    ]
    for p, branch in enumerate(result.branches):
        ran = f"{found.simulated[p]:10.1f}" if found.simulated else f"{'-':>10}"
        told = f"{branch.batch:5} {branch.dsp:6} {branch.bram:6} {branch.fps:10.1f} {branch.delivered:10.1f} {ran}"
        lines.append(f"  {branch.name[:20]:20} {told}")
    given = f" of {found.budget.dsp}" if found.budget else ""
    blocks = f" of {found.budget.bram}" if found.budget else ""
    lines.append(f"  in all {result.dsp}{given} DSPs, {result.bram}{blocks} block RAMs of 18 Kb,"
                 f" {result.bandwidth / 8e9:.2f} GB/s, {result.efficiency:.1%} efficient")  # fmt: skip
    if found.target:
        lines.append("  no design of its factors delivers that with fewer DSPs")
    elif found.proven:
        lines.append("  no design of its space is better")
    else:
        lines.append(f"  score {found.fitness:.1f}; no design exceeds {found.bound:.1f}")
    return "\n".join([*lines, f"  modelled. {NOT_MODELLED}."])


def _plot_design(found, path: Path) -> None:
    import matplotlib
    from matplotlib import pyplot as plt

    from . import plots
    from .plots.fcad import pipelines

    matplotlib.use("agg")  # files, no windows
    figure = pipelines(found.config, title=f"{found.network}: the design found (modelled)")
    plots.save(figure, path)
    plt.close(figure)


def _numbers(text: str) -> list[float]:
    """Numbers with commas between."""
    return [float(word) for word in text.split(",")]


def _budget(options: argparse.Namespace):
    """What the options say of a chip; None if nothing."""
    from .fcad.cost import Budget
    from .fcad.platforms import platform

    own = {"dsp": options.dsp, "bram": options.bram}
    own["bandwidth"] = None if options.bandwidth is None else 8e9 * options.bandwidth
    own = {name: value for name, value in own.items() if value is not None}
    if options.platform:
        chip = platform(options.platform)
        return dataclasses.replace(chip, name=f"{chip.name} in part", **own) if own else chip
    if not own:
        return None
    if not {"dsp", "bram"} <= own.keys():
        missing = " and ".join(f"--{name}" for name in ("dsp", "bram") if name not in own)
        raise I2IError("budget", expected=f"{missing} too, or a --platform", got=", ".join(own))
    return Budget(**own)


def _network(options: argparse.Namespace):
    """The analysed network, and its name."""
    from .fcad import analyse

    path, _, factory = options.network.partition(".py:")
    if not factory:
        return analyse(options.network, leave_ends=True), Path(options.network).stem
    import torch

    made = _made_by(Path(f"{path}.py"), factory)
    module, inputs = made if isinstance(made, tuple) else (made, None)
    if options.input:
        inputs = tuple(torch.zeros([int(n) for n in shape.split(",")], device="meta") for shape in options.input)
    if inputs is None:
        raise I2IError(factory, expected="a module and its example inputs, or --input N,C,H,W", got="a module alone")
    return analyse(module, inputs, leave_ends=True), factory


def _made_by(path: Path, factory: str):
    """What a function of a Python file gives."""
    import importlib.util

    if not path.is_file():
        raise I2IError(str(path), expected="a Python file", got="none")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(make := getattr(module, factory, None)):
        raise I2IError(str(path), expected=f"a function {factory}", got="none")
    return make()


def _serve(options: argparse.Namespace) -> int:
    if options.check:
        return _check(options)
    from .runtime import WEIGHTS
    from .serve.networks import open_models
    from .serve.server import Limits, Server, logging_to, signals, until_told

    given = options.model or [str(WEIGHTS / "matting_actors.safetensors")]
    pairs = [_pair(text, "--model") if "=" in text else (Path(text).stem, text) for text in given]
    if len({name for name, _ in pairs}) < len(pairs):
        raise I2IError("--model", expected="different names", got=", ".join(name for name, _ in pairs))
    limits = Limits(
        message_bytes=min(options.most_mib << 20, 2**31 - 1),
        memory_bytes=int((options.memory or 0) * 2**30),
        connections=options.clients,
    )
    how = {"host": options.host, "port": options.port, "metrics_port": options.metrics_port, "limits": limits}
    with contextlib.ExitStack() as stack, logging_to(sys.stderr), signals() as told:
        weights = {name: Path(path) for name, path in pairs}
        found, pools = open_models(stack, weights, options.backend or ["auto"], batch=options.batch)
        server = Server(found, pools=pools, **how)
        names = [model.name for model in found]
        result = {"host": server.host, "port": server.port, "metrics_port": server.metrics_port, "models": names}
        page = f"; metrics: http://127.0.0.1:{server.metrics_port}/" if server.metrics_port else ""
        _say(options, result, f"serving {', '.join(names)} on {server.host}:{server.port}{page}")
        sys.stdout.flush()
        return 0 if until_told(server, told) else 1


def _check(options: argparse.Namespace) -> int:
    """The health probe: 0 if a server lists models, 1 if not."""
    from .serve.client import Address, models

    try:
        names = [model.name for model in models(Address(options.host, options.port, seconds=10.0))]
        result = {"ok": bool(names), "models": names, "reason": "" if names else "no models"}
    except I2IError as error:
        result = {"ok": False, "models": [], "reason": str(error)}
    _say(options, result, ", ".join(result["models"]) if result["ok"] else f"not well: {result['reason']}")
    return 0 if result["ok"] else 1


def _send(options: argparse.Namespace) -> int:
    import torch

    from . import colour
    from .frames import read_image, stored_colour, write_image
    from .serve import client

    _writable(options.out)
    values = dict(_pair(text, "--option") for text in options.option)
    where = client.Address(options.host, options.port, seconds=options.seconds, retries=options.retries)
    frame = read_image(options.frame, layer=options.layer)
    linear = frame.rgb if frame.colour == "linear" else colour.srgb_to_linear(frame.rgb)
    offered = client.models(where)
    names = [model.name for model in offered]
    if options.model is not None and options.model not in names:
        raise I2IError("--model", expected=" or ".join(names), got=repr(options.model))
    model = offered[names.index(options.model) if options.model else 0]
    planes = torch.from_numpy(client.run(where, model, [linear[0].numpy()], values).copy())[None]
    if options.matte:
        planes = planes[:, :1]
    elif stored_colour(options.out) == "srgb":
        planes = torch.cat([colour.linear_to_srgb(planes[:, :3]), planes[:, 3:4]], 1)
    premultiplied = values.get("planes") == "premultiplied"
    write_image(options.out, planes, premultiplied=premultiplied, origin=frame.origin, aspect=frame.aspect)
    result = {"out": str(options.out), "model": model.name, "planes": planes.shape[1]}
    _say(options, result, f"{options.out}: {planes.shape[1]} planes from {model.name}")
    return 0


def _pair(text: str, option: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not (name and sign and value):
        raise I2IError(option, expected="NAME=VALUE", got=repr(text))
    return name, value


def _calibration(clip, options, *, frames: int = 4):
    """Batches of patches from frames spread over a clip; unreadable frames are passed over."""
    from . import patches
    from .pipeline import network_input

    step = max(1, len(clip) // max(1, frames))
    wanted = set(clip.names[::step][:frames])
    batches, problem = [], None
    for _, frame in clip.read(wanted):
        try:
            if isinstance(frame, FrameError):
                raise frame
            mapped = network_input(frame, options)
        except FrameError as error:
            problem = error
            continue
        every = patches.iter_batches(mapped, batch=options.batch, patch=options.patch)
        batches += [batch for _, batch in itertools.islice(every, 16)]  # 128 patches of a frame are plenty
    if not batches:
        raise problem or FrameError(str(clip.path), expected="a frame to calibrate on", got="none")
    return batches


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
