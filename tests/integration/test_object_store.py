"""A grid whose results and checkpoints lie in an S3 bucket, end to end."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from processes import run
from tiny_grid import write_grid

from trainable import records
from trainable.storage import Storage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_parent_child_table_and_rerun(s3_uri: str, data_path: Path, tmp_path: Path) -> None:
    """The child reads its parent's checkpoint from the bucket."""
    child = {"init.kind": "parent", "init.source": "first", "init.checkpoint": "best_on_test", "seed": 2}
    file = write_grid(tmp_path / "experiments.yaml", {"first": {"seed": 1}, "second": child})
    uri = s3_uri.format(name="study")
    given = ("--grid", "tiny", "--experiments", file, "--data", data_path, "--results", uri)
    done = run("tuner.run", *given)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "grid tiny: 2 DONE" in done.stdout
    root, _, options = uri.partition("?")
    assert f"runs and logs  {root}/runs?{options}" in done.stdout
    assert f"python -m analysis.tables --grid tiny --results {shlex.quote(uri)}" in done.stdout

    storage = Storage(uri)
    rows = records.read_table(storage, "provenance", records.read_commits(storage).values()).to_pylist()
    reports = [row["weights_report_json"] for row in rows if '"kind":"parent"' in row["spec_json"].replace(" ", "")]
    assert len(rows) == 2 and len(reports) == 1 and reports[0]

    table = run("analysis.tables", "--results", uri, "--out", tmp_path / "out")
    assert table.returncode == 0, table.stderr
    assert "first" in table.stdout and "second" in table.stdout and (tmp_path / "out" / "tiny" / "T1.md").exists()

    again = run("tuner.run", *given)
    assert again.returncode == 0 and "nothing to run" in again.stdout
    assert len(records.read_attempts(storage)) == 2
