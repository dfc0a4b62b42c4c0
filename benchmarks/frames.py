"""Opening footage: a folder of 20,000 frames, and the last frame of a long video, against the plain way.

    python benchmarks/frames.py [--json] [--n 5] [--files 20000] [--frames 960]

Folder: ``open_clip`` against a listing sorted by name, with no natural order and no check for equal names. Video
(H.264, 1280 x 720, made by the library's own writer): ``open_clip`` and its last frame against PyAV decoding from the
first frame, as one must who does not know where key frames are. In turns; medians are compared.
"""

from __future__ import annotations

import json
import tempfile
from collections import deque
from pathlib import Path

import av
import numpy as np
from _common import arguments, medians

import i2ilib
from i2ilib.frames import open_clip, write_video


def last_frame(path: Path) -> object:
    """The last frame of a video, from its last key frame."""
    clip = open_clip(path)
    return next(iter(clip.read({clip.names[-1]})))[1].rgb


def last_frame_plain(path: Path) -> object:
    """The same by decoding everything."""
    with av.open(str(path)) as file:
        file.streams.video[0].thread_type = "AUTO"
        (frame,) = deque(file.decode(video=0), maxlen=1)
        return frame.to_ndarray(format="rgb48le")


def main() -> None:
    """Measure, compare, print."""
    parser = arguments(
        __doc__,
        n=(5, "rounds; the median is reported"),
        files=(20_000, "pictures in the folder"),
        frames=(960, "frames of the video"),
    )
    options = parser.parse_args()
    run = i2ilib.start()
    with tempfile.TemporaryDirectory() as name:
        folder, video = Path(name) / "shot", Path(name) / "v.mp4"
        folder.mkdir()
        for i in range(options.files):
            (folder / f"sh010.{i:06d}.png").touch()
        wave = np.linspace(0, 20, 1280)[None, :, None] + np.zeros((720, 1, 3))
        pictures = ((120 + 100 * np.sin(wave + i / 5)).astype(np.uint8) for i in range(options.frames))
        write_video(video, pictures, fps=24, crf=30)
        seconds = {
            "folder": medians(
                {"ours": lambda: open_clip(folder), "peer": lambda: sorted(p for p in folder.iterdir() if p.is_file())},
                options.n,
            ),
            "video": medians({"ours": lambda: last_frame(video), "peer": lambda: last_frame_plain(video)}, options.n),
        }
    peers = {"folder": "pathlib: listed, sorted by name", "video": f"PyAV {av.__version__}, decoding from the start"}
    rows = [
        {"name": f"frames: {what}", **pair, "peer_name": peers[what], "ratio": pair["peer"] / pair["ours"]}
        for what, pair in seconds.items()
    ]
    common = {"unit": "s (median, measured; ratio = peer / ours)", "n": options.n, "device": run.device_name}
    if options.json:
        print(json.dumps({"rows": rows, "files": options.files, "frames": options.frames} | common))
        return
    print(f"{run.device_name}, median of {options.n}")
    for row in rows:
        print(
            f"  {row['name']:15} {row['ours']:7.3f} s, {row['ratio']:5.1f} x {row['peer_name']} ({row['peer']:.3f} s)"
        )


if __name__ == "__main__":
    main()
