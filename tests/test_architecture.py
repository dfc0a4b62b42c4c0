"""The rooms of the library import one way: as the table in ARCHITECTURE.md says, read from the source itself."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "i2ilib"
FACES = {"__init__", "__main__"}  # of the package: they only pass on
AGAINST_THE_RULE = {("runtime", "plots")}  # start() sets the house style, late and only where matplotlib is there


def floors(text: str) -> dict[str, int]:
    """Room: floor, from the rows ``| 2 | `train`, `quant` | … |``."""
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", text, re.MULTILINE)
    return {room: int(floor) for floor, rooms in rows for room in re.findall(r"`(\w+)`", rooms)}


def imported(source: str, package: tuple[str, ...]) -> set[str]:
    """Rooms that a module of ``package`` (("i2ilib", "deploy"), say) imports when it runs, at once or later."""
    tree = ast.parse(source)
    for node in ast.walk(tree):  # what only a type checker sees is no import
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += node.module.split(".") if node.module else []
            names = [[*base, alias.name] for alias in node.names]
        else:
            continue
        found |= {name[1] for name in names if name[0] == "i2ilib" and len(name) > 1}
    return found


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.fixture(scope="module")
def house():
    return floors((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def graph():
    """Room: the other rooms that it imports."""
    graph = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = room(path)
        if name not in FACES:
            package = ("i2ilib", *path.relative_to(PACKAGE).parts[:-1])
            graph.setdefault(name, set()).update(imported(path.read_text(encoding="utf-8"), package) - {name})
    return graph


def test_every_room_has_a_floor(house, graph):
    assert set(house) == set(graph)


def test_imports_are_of_rooms(house, graph):
    assert set().union(*graph.values()) <= set(house)


def test_no_room_imports_from_above(house, graph):
    upward = {(a, b) for a, others in graph.items() for b in others if house[b] > house[a]}
    assert upward == AGAINST_THE_RULE


def test_no_circle(graph):
    tidy = {a: {b for b in others if (a, b) not in AGAINST_THE_RULE} for a, others in graph.items()}
    assert len(list(TopologicalSorter(tidy).static_order())) == len(graph)


def test_nothing_imports_a_notebook_or_a_test():
    text = "\n".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    assert not re.search(r"^\s*(from|import) (notebooks|tests|conftest)\b", text, re.MULTILINE)


# --- the checks can fail ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "package", "expected"),
    [
        ("from ..pipeline import matte", ("i2ilib", "deploy"), {"pipeline"}),
        ("from .. import models, patches", ("i2ilib", "deploy"), {"models", "patches"}),
        ("from .runner import verify", ("i2ilib", "deploy"), {"deploy"}),
        ("from . import colour", ("i2ilib",), {"colour"}),
        ("import i2ilib.quant.export, torch", ("i2ilib",), {"quant"}),
        ("from i2ilib.train import fit", ("i2ilib",), {"train"}),
        ("def f():\n    from .plots import style", ("i2ilib",), {"plots"}),
        ("if TYPE_CHECKING:\n    from .widgets import View", ("i2ilib",), set()),
        ("from torch import nn\nimport numpy", ("i2ilib",), set()),
    ],
)
def test_imports_are_found(source, package, expected):
    assert imported(source, package) == expected


def test_a_circle_is_found():
    with pytest.raises(CycleError):
        list(TopologicalSorter({"colour": {"patches"}, "patches": {"colour"}}).static_order())


def test_floors_are_read_from_a_table():
    assert floors("| floor | room |\n|---|---|\n| 0 | `errors`, `runtime` | x |\n| 1 | `models` | `y` |\n") == {
        "errors": 0,
        "runtime": 0,
        "models": 1,
    }
