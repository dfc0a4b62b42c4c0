"""The committed notebooks, read without running them: whole, in order, tagged, clean, and true to the library."""

import ast
import copy
import importlib
import json
import re
import types
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))
CONTRACT = ("You learn", "You need", "Minutes", "Hardware", "Reads", "Writes", "Run before")
COMPARED = ("nbval-check-output", "nbval-ignore-output")
MAX_BYTES, MAX_LINES, MIN_PROSE = 1_500_000, 24, 1500
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:root|home|work|tmp|Users)/")


def source(cell):
    return "".join(cell["source"])


def tags(cell):
    return set(cell["metadata"].get("tags", []))


def code_cells(notebook):
    return [(i, cell) for i, cell in enumerate(notebook["cells"]) if cell["cell_type"] == "code"]


def prose_cells(notebook):
    return [source(cell) for cell in notebook["cells"] if cell["cell_type"] == "markdown"]


# --- the rules: each gives what is wrong -------------------------------------------------------------


def kernel(notebook):
    if (name := notebook["metadata"].get("kernelspec", {}).get("name")) != "python3":
        yield f"kernel {name!r} instead of 'python3'"


def run_in_order(notebook):
    """Every code cell was run once, from the top; an exercise's stub may be left out."""
    cells = [(i, cell["execution_count"]) for i, cell in code_cells(notebook) if "nbval-skip" not in tags(cell)]
    yield from (f"cell {i} was not run" for i, count in cells if count is None)
    counts = [cell["execution_count"] for _, cell in code_cells(notebook) if cell["execution_count"] is not None]
    if counts != list(range(1, len(counts) + 1)):
        yield f"execution counts {counts}"


def no_stored_errors(notebook):
    for i, cell in code_cells(notebook):
        if "raises-exception" not in tags(cell):
            errors = [out["ename"] for out in cell["outputs"] if out["output_type"] == "error"]
            yield from (f"cell {i} stored {name}" for name in errors)


def exercises_grade_the_reader(notebook):
    """A stub, a check that is run on it, and a folded solution of another name with the same check and a mistake."""
    cells = code_cells(notebook)
    for place, (i, stub) in enumerate(cells):
        if "raise NotImplementedError" not in source(stub):
            continue
        (name,) = re.findall(r"^(?:def|class) (\w+)", source(stub), re.MULTILINE)[-1:] or [None]
        check, solution = ([cell for _, cell in cells[place + 1 : place + 3]] + [None] * 2)[:2]
        if name is None or check is None or f"grade(check_{name}, {name})" not in source(check):
            yield f"the stub in cell {i} is not graded in the next one"
        elif solution is None or not solution["metadata"].get("jupyter", {}).get("source_hidden"):
            yield f"the exercise of cell {i} has no folded solution"
        elif f"def {name}(" in source(solution) or f"class {name}(" in source(solution):
            yield f"the solution redefines {name}"
        else:
            wanted = (f"grade(check_{name}, {name}_solution", f"finds(check_{name}, ")
            yield from (f"no {call}) behind cell {i}" for call in wanted if call not in source(solution))


def outputs_are_tagged(notebook):
    """A cell that emits output says whether the output is compared; one that emits none says nothing."""
    for i, cell in code_cells(notebook):
        if cell["outputs"] and "nbval-skip" not in tags(cell) and len(tags(cell).intersection(COMPARED)) != 1:
            yield f"cell {i} has output and {len(tags(cell).intersection(COMPARED))} of the tags {COMPARED}"


def outputs_are_clean(notebook):
    for i, cell in code_cells(notebook):
        for out in cell["outputs"]:
            if out.get("name") == "stderr":
                yield f"cell {i} stored stderr: {''.join(out['text'])[:80]!r}"
            data = {mime: value for mime, value in out.get("data", {}).items() if not mime.startswith("image/")}
            told = json.dumps([data, out.get("text"), out.get("traceback")], ensure_ascii=False)
            if path := MACHINE_PATH.search(told):
                yield f"cell {i} stored a path: {told[path.start() : path.start() + 60]!r}"


def opens_with_a_contract(notebook):
    first = notebook["cells"][0]
    if first["cell_type"] != "markdown" or not source(first).startswith("# "):
        yield "the first cell is no title"
    rows = [line.lower() for line in source(first).splitlines() if line.startswith("|")]
    yield from (f"no row {word!r} in the contract" for word in CONTRACT if not any(word.lower() in r for r in rows))


def closes_properly(notebook):
    end = "\n".join(prose_cells(notebook)[-4:]).lower()
    yield from (f"no {word} at the end" for word in ("recap", "references") if word not in end)


def has_enough_prose(notebook):
    if (length := sum(map(len, prose_cells(notebook)))) < MIN_PROSE:
        yield f"{length} characters of prose"


def cells_are_short(notebook):
    """Imports do not count, and folded solutions may be longer."""
    for i, cell in code_cells(notebook):
        lines = [line for line in source(cell).splitlines() if not re.match(r"(import|from) \w", line)]
        if len(lines) > MAX_LINES and not cell["metadata"].get("jupyter", {}).get("source_hidden"):
            yield f"cell {i} has {len(lines)} lines that are no imports"


def library_names_exist(notebook):
    """Names imported from i2ilib, and attributes used of its modules."""
    modules = {}
    for i, cell in code_cells(notebook):
        lines = ["pass" if line.lstrip().startswith(("%", "!")) else line for line in source(cell).splitlines()]
        tree = ast.parse("\n".join(lines))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "i2ilib":
                for alias in node.names:
                    found = find(node.module, alias.name)
                    if found is None:
                        yield f"cell {i} imports {node.module}.{alias.name}, which is not there"
                    elif isinstance(found, types.ModuleType):
                        modules[alias.asname or alias.name] = found
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.split(".")[0] == "i2ilib":
                        importlib.import_module(alias.name)
                        modules[alias.asname or "i2ilib"] = importlib.import_module(
                            alias.name if alias.asname else "i2ilib"
                        )
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
                module = modules[node.value.id]
                if find(module.__name__, node.attr) is None:
                    yield f"cell {i} uses {module.__name__}.{node.attr}, which is not there"


def find(module, name):
    """A public name of a module, or its submodule; None if there is neither."""
    try:
        parent = importlib.import_module(module)
        return getattr(parent, name) if hasattr(parent, name) else importlib.import_module(f"{module}.{name}")
    except ImportError:
        return None


RULES = [
    kernel,
    run_in_order,
    no_stored_errors,
    exercises_grade_the_reader,
    outputs_are_tagged,
    outputs_are_clean,
    opens_with_a_contract,
    closes_properly,
    has_enough_prose,
    cells_are_short,
    library_names_exist,
]


# --- the notebooks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path, rule):
    assert list(rule(json.loads(path.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_small(path):
    assert path.stat().st_size <= MAX_BYTES


# --- the rules themselves ----------------------------------------------------------------------------


def code(text, count, *outputs, tags=()):
    return {
        "cell_type": "code",
        "source": text,
        "execution_count": count,
        "outputs": list(outputs),
        "metadata": {"tags": list(tags)},
    }


def folded(text, count):
    cell = code(text, count)
    cell["metadata"]["jupyter"] = {"source_hidden": True}
    return cell


def stream(text, name="stdout"):
    return {"output_type": "stream", "name": name, "text": [text]}


def prose(text):
    return {"cell_type": "markdown", "source": [text], "metadata": {}}


GOOD = {
    "metadata": {"kernelspec": {"name": "python3"}},
    "cells": [
        prose("# Title\n\n" + "\n".join(f"| **{word}** | x |" for word in CONTRACT)),
        prose("word " * 300),
        code("%matplotlib inline\nimport i2ilib\nfrom i2ilib import patches\nrun = i2ilib.start()", 1),
        code("print(patches.PATCH)", 2, stream("256\n"), tags=["nbval-check-output"]),
        code("def half(x):\n    raise NotImplementedError", 3),
        code("def check_half(half):\n    ...\n\n\ngrade(check_half, half)", 4),
        folded("def half_solution(x): ...\ngrade(check_half, half_solution)\nfinds(check_half, abs)", 5),
        prose("## Recap\n\n## References"),
    ],
}


def broken(change):
    notebook = copy.deepcopy(GOOD)
    change(notebook)
    return notebook


def test_a_good_notebook_passes():
    assert [problem for rule in RULES for problem in rule(GOOD)] == []


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        (kernel, lambda nb: nb["metadata"]["kernelspec"].update(name="conda-env")),
        (run_in_order, lambda nb: nb["cells"][3].update(execution_count=5)),
        (run_in_order, lambda nb: nb["cells"][3].update(execution_count=None)),
        (no_stored_errors, lambda nb: nb["cells"][3]["outputs"].append({"output_type": "error", "ename": "KeyError"})),
        (exercises_grade_the_reader, lambda nb: nb["cells"][5].update(source="half(1)")),
        (exercises_grade_the_reader, lambda nb: nb["cells"].pop(6)),
        (exercises_grade_the_reader, lambda nb: nb["cells"][6]["metadata"].pop("jupyter")),
        (exercises_grade_the_reader, lambda nb: nb["cells"][6].update(source="def half(x): ...")),
        (exercises_grade_the_reader, lambda nb: nb["cells"][6].update(source="grade(check_half, half_solution)")),
        (exercises_grade_the_reader, lambda nb: nb["cells"][6].update(source="finds(check_half, abs)")),
        (outputs_are_tagged, lambda nb: nb["cells"][3]["metadata"].update(tags=[])),
        (outputs_are_tagged, lambda nb: nb["cells"][3]["metadata"].update(tags=list(COMPARED))),
        (outputs_are_clean, lambda nb: nb["cells"][3]["outputs"].append(stream("warning", "stderr"))),
        (outputs_are_clean, lambda nb: nb["cells"][3]["outputs"].append(stream("saved to /home/me/x.png"))),
        (
            outputs_are_clean,
            lambda nb: nb["cells"][3]["outputs"].append(
                {"output_type": "display_data", "data": {"text/html": ["<b>/tmp/x</b>"]}}
            ),
        ),
        (opens_with_a_contract, lambda nb: nb["cells"].pop(0)),
        (opens_with_a_contract, lambda nb: nb["cells"][0].update(source="# Title\n\nYou learn, but no table")),
        (closes_properly, lambda nb: nb["cells"].pop()),
        (has_enough_prose, lambda nb: nb["cells"].pop(1)),
        (cells_are_short, lambda nb: nb["cells"][2].update(source="pass\n" * 46)),
        (library_names_exist, lambda nb: nb["cells"][2].update(source="from i2ilib.patches import magic")),
        (library_names_exist, lambda nb: nb["cells"][2].update(source="from i2ilib.magic import PATCH")),
        (library_names_exist, lambda nb: nb["cells"][2].update(source="from i2ilib import patches\npatches.magic()")),
        (library_names_exist, lambda nb: nb["cells"][2].update(source="import i2ilib.patches as p\np.magic()")),
    ],
)
def test_each_rule_can_fail(rule, change):
    notebook = broken(change)
    assert list(rule(notebook))
