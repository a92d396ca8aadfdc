"""Which commit a result was made with, also where the code lies without its repository."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from trainable import provenance


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """The commit is looked up once a process; every test looks anew."""
    provenance.git_state.cache_clear()
    yield
    provenance.git_state.cache_clear()


@pytest.mark.parametrize(("told", "dirty"), [("a" * 40, False), ("a" * 40 + "-dirty", True)])
def test_a_copy_is_told_its_commit(monkeypatch: pytest.MonkeyPatch, told: str, dirty: bool) -> None:
    monkeypatch.setenv("GRID_TUNER_GIT", told)
    row = provenance.describe(torch.device("cpu"))
    assert (row["code_git_sha"], row["code_git_dirty"]) == ("a" * 40, dirty)


def test_a_copy_that_is_told_nothing_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GRID_TUNER_GIT", raising=False)
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    row = provenance.describe(torch.device("cpu"))
    assert (row["code_git_sha"], row["code_git_dirty"]) == (None, None)


def test_a_checkout_is_asked_as_the_documented_command_asks_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def git(*words: str) -> str:
        settings = ("-c", "user.name=n", "-c", "user.email=e", "-C", str(tmp_path))
        return subprocess.run(["git", *settings, *words], capture_output=True, text=True, check=True).stdout.strip()

    monkeypatch.delenv("GRID_TUNER_GIT", raising=False)
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    git("init", "-q")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-qm", "one")
    for content, end in (("one", ""), ("two", "-dirty")):
        (tmp_path / "file").write_text(content)
        provenance.git_state.cache_clear()
        described = git("describe", "--always", "--abbrev=40", "--dirty", "--exclude", "*")
        assert provenance.git_state() == described and re.fullmatch(f"[0-9a-f]{{40}}{end}", described)
