"""pyproject.toml, constraints.txt and environment.yml name one set of packages."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
AMD = {"pytorch-nndct", "xir", "vart"}


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wanted(project):
    extras = project["optional-dependencies"]
    texts = project["dependencies"] + extras["notebooks"] + extras["test"]
    return {canonical(r.name): r for r in map(Requirement, texts)}


@pytest.fixture(scope="module")
def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


@pytest.fixture(scope="module")
def conda():
    parts = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    return parts, next(part["pip"] for part in parts if isinstance(part, dict))


def test_every_dependency_is_pinned_within_its_range(wanted, pins):
    for name, requirement in wanted.items():
        assert Version(pins[name]) in requirement.specifier, name


def test_environment_lists_the_same_packages_at_the_same_versions(wanted, pins, conda):
    listed = [Requirement(line) for line in conda[1] if not line.startswith("--")]
    assert {canonical(r.name): str(r.specifier) for r in listed} == {name: f"=={pins[name]}" for name in wanted}
    assert {canonical(r.name): r.marker for r in listed} == {name: r.marker for name, r in wanted.items()}
    assert "--constraint constraints.txt" in conda[1] and "--editable .[notebooks,test]" in conda[1]


def test_python_is_the_one_that_the_project_asks_for(project, conda):
    python = next(part for part in conda[0] if isinstance(part, str) and part.startswith("python="))
    assert Version(python.split("=")[1]) in Requirement("python" + project["requires-python"]).specifier


def test_amds_tools_are_never_pip_names(project, pins, conda):
    extras = [r for group in project["optional-dependencies"].values() for r in group]
    named = {canonical(Requirement(r).name) for r in project["dependencies"] + extras} | set(pins)
    assert not AMD & named and not any(canonical(re.split("[=<>]", line)[0]) in AMD for line in conda[1])


def test_tensorrt_is_an_extra_only(project, pins):
    assert [Requirement(r).name for r in project["optional-dependencies"]["tensorrt"]] == ["tensorrt"]
    assert "tensorrt" not in pins
