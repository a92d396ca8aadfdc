"""Bombs in archives and images end in an error, in a process that may take 3 GiB and a few seconds."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bombs import BOMBS, HARMLESS

OPENER = """
import json, resource, sys, time
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
from datasets.sources import open_source
from datasets.store import DataError
for number, (name, size) in enumerate(json.loads(sys.argv[1])):
    began, said = time.process_time(), "read"
    try:
        source = open_source(name, Path(sys.argv[2], str(number)), image_size=size)
        shapes = [block.shape for split in (source.train, source.test) for block in split.blocks()]
    except DataError as error:
        said = str(error)
    print(json.dumps({"said": said, "seconds": time.process_time() - began}), flush=True)
"""
ALL = {**{name: bomb[:3] for name, bomb in BOMBS.items()}, **HARMLESS}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory, root: Path) -> dict[str, dict[str, Any]]:
    """All of them in one process, one after the other; one that ends it takes those behind it along."""
    folder = tmp_path_factory.mktemp("bombs")
    for number, (_, _, write) in enumerate(ALL.values()):
        write(folder / str(number))
    given = json.dumps([(name, size) for name, size, _ in ALL.values()])
    done = subprocess.run(
        [sys.executable, "-c", OPENER, given, str(folder)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(ALL), f"it died of {list(ALL)[len(answers)]}: {done.stderr}"
    return dict(zip(ALL, answers, strict=True))


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_end_in_an_error(name: str, opened: dict[str, dict[str, Any]]) -> None:
    assert re.search(BOMBS[name][3].replace("(", r"\(").replace(")", r"\)"), opened[name]["said"])
    assert opened[name]["seconds"] < 5


@pytest.mark.parametrize("name", HARMLESS)
def test_only_the_first_frame_is_read(name: str, opened: dict[str, dict[str, Any]]) -> None:
    assert opened[name]["said"] == "read" and opened[name]["seconds"] < 5
