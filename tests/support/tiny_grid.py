"""Writes experiment files with rows of seconds on the toy images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from toy import BASE


def write_grid(path: Path, rows: dict[str, dict[str, Any]], base: dict[str, Any] | None = None) -> Path:
    """An experiment file with the grid `tiny`: rows by label, each with the fields that it changes."""
    own = {**BASE, "budget.epochs": 2, **(base or {})}
    del own["init.sha256"], own["data.content_sha256"]
    grid = {
        "help": "Tiny rows on toy images",
        "base": own,
        "axes": {"row": rows},
        "matrix": {"row": list(rows)},
        "rows": {label: {"at": {"row": label}} for label in rows},
    }
    path.write_text(yaml.safe_dump({"version": 1, "grids": {"tiny": grid}}))
    return path
