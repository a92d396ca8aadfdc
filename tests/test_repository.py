"""What the repository promises of itself."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest


def tracked(root: Path) -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("needs a git checkout")
    return [root / name for name in done.stdout.split("\0") if name and (root / name).is_file()]


def test_files_are_short_and_have_a_docstring(root: Path) -> None:
    import ast

    for path in tracked(root):
        if path.suffix == ".py" and "tests" not in path.parts:
            text = path.read_text()
            assert text.count("\n") <= 450, f"{path.name} is long: does it hold one concept?"
            assert ast.get_docstring(ast.parse(text)), f"{path.name} has no module docstring"


def test_no_utils(root: Path) -> None:
    assert not [path for path in tracked(root) if "util" in path.name.lower()]


def test_the_lock_holds_versions_and_nothing_else(root: Path) -> None:
    lines = [line for line in (root / "requirements.lock").read_text().splitlines() if not line.strip().startswith("#")]
    assert len(lines) > 80 and all(
        re.match(r"[a-z0-9_.-]+(\[[a-z0-9,-]+\])?==[\w.+!]+( ; .*)?$", line) for line in lines
    )


def test_the_lock_covers_what_pyproject_asks_for(root: Path) -> None:
    import tomllib

    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    asked = project["dependencies"] + project["optional-dependencies"]["dev"]
    locked = set(re.findall(r"^([a-z0-9_.-]+)==", (root / "requirements.lock").read_text(), re.MULTILINE))
    names = {re.split(r"[\[<>=~ ]", requirement)[0].lower() for requirement in asked}
    assert names <= locked


def test_readme_names_the_commands(root: Path) -> None:
    head = "\n".join((root / "README.md").read_text().splitlines()[:60])
    for command in ("make demo", "make test", "python -m tuner.run --grid paper", "python -m analysis.tables"):
        assert command in head
    assert "make test" in (root / ".ci" / "run").read_text()
