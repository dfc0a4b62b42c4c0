"""Order and names of the frames of a folder."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath

# a minus belongs to the number where nothing else can be meant: shot.-002, _-2 and -2, but not shot-002
_NUMBER = re.compile(r"((?:(?:^|(?<=[._]))-)?[0-9]+)")


def natural(name: str) -> tuple[list, str]:
    """Sort key that plays frame 9 before frame 10, and frame -2 before frame -1.

    Example:
        >>> sorted(["s.10.png", "s.9.png", "s.-0001.png", "s.-0002.png"], key=natural)
        ['s.-0002.png', 's.-0001.png', 's.9.png', 's.10.png']
    """
    parts = _NUMBER.split(name)
    parts[1::2] = map(int, parts[1::2])
    parts[::2] = map(str.casefold, parts[::2])
    return parts, name


def numbers(stem: str) -> tuple[int, ...]:
    """The whole numbers in a file's name without its suffix, from left to right: take, frame, version.

    Example:
        >>> numbers("take2.0012"), numbers("s.-3"), numbers("plate")
        ((2, 12), (-3,), ())
    """
    return tuple(map(int, _NUMBER.findall(stem)))


def unique(files: Sequence[PurePath]) -> tuple[str, ...]:
    """A name for each file that no other has, upper and lower case taken as the same, as some file systems do.

    It is the name without suffix; where that is not unique, the suffix joins it, and then a number.

    Example:
        >>> unique([PurePath(name) for name in ("a.png", "a.jpg", "a_png.tif", "b.exr")])
        ('a_png_2', 'a_jpg', 'a_png', 'b')
    """
    stems = Counter(path.stem.casefold() for path in files)
    taken = {path.stem.casefold() for path in files if stems[path.stem.casefold()] == 1}
    names = []
    for path in files:
        name = path.stem
        if stems[name.casefold()] > 1:
            whole, count = path.name.replace(".", "_"), 1
            name = whole
            while name.casefold() in taken:
                count += 1
                name = f"{whole}_{count}"
            taken.add(name.casefold())
        names.append(name)
    return tuple(names)
