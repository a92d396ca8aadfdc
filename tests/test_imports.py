"""Import directions: datasets <- trainable <- tuner, analysis beside them, Ray in tuner alone."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import datasets

PACKAGES = {
    "datasets": {"datasets"},
    "trainable": {"datasets", "trainable"},
    "tuner": {"datasets", "trainable", "tuner"},
    "analysis": {"datasets", "trainable", "analysis"},
}
HEAVY = {"torch", "torchvision", "timm", "captum", "ray"}
NETWORKS = {"checkpoints.py", "explain.py", "features.py", "networks.py"}
"""Files of the analysis that look into networks; nothing but `analysis.features` imports them."""


def files(root: Path) -> list[tuple[str, Path]]:
    return [(package, path) for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_directions(root: Path) -> None:
    faults = [
        f"{path.relative_to(root)} imports {name}"
        for package, path in files(root)
        for name in imports(path)
        if name.split(".")[0] in PACKAGES and name.split(".")[0] not in PACKAGES[package]
    ]
    assert not faults


def test_ray_is_imported_in_tuner_alone(root: Path) -> None:
    faults = [
        str(path.relative_to(root))
        for package, path in files(root)
        if package != "tuner" and any(name.split(".")[0] == "ray" for name in imports(path))
    ]
    assert not faults


def test_analysis_imports_no_torch_but_to_look_into_networks(root: Path) -> None:
    banned = HEAVY | {f"analysis.{name.removesuffix('.py')}" for name in NETWORKS}
    faults = [
        f"{path.relative_to(root)} imports {name}"
        for package, path in files(root)
        for name in imports(path)
        if package == "analysis" and path.name not in NETWORKS
        if name.split(".")[0] in banned or ".".join(name.split(".")[:2]) in banned
    ]
    assert not faults


def test_the_data_path_is_ours(root: Path) -> None:
    forbidden = ("torch.utils.data", "torchvision.datasets", "torchvision.transforms")
    faults = [
        f"{path.relative_to(root)} imports {name}"
        for _, path in files(root)
        for name in imports(path)
        if name.startswith(forbidden)
    ]
    assert not faults


def test_datasets_is_this_repositorys(root: Path) -> None:
    assert datasets.__file__ is not None
    assert Path(datasets.__file__).is_relative_to(root)


@pytest.mark.parametrize(
    "module",
    [
        *("tuner.grid", "trainable.spec", "tuner.status", "tuner.run", "tuner.plan"),
        *("analysis.tables", "analysis.check", "analysis.figures", "analysis.report"),
        *("analysis.curves", "analysis.run_report"),
    ],
)
def test_reading_a_grid_or_a_store_is_light(module: str, root: Path) -> None:
    code = f"import sys, {module}; print(sorted({HEAVY!r} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert shown.stdout.strip() == "[]"


def test_tables_are_printed_without_drawing(root: Path) -> None:
    code = "import sys, analysis.tables, tuner.run; print('matplotlib' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert shown.stdout.strip() == "False"
