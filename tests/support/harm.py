"""What a hostile file would carry."""

from __future__ import annotations

import os
from pathlib import Path


class Harm:
    """Unpickled by the ordinary pickle module, this creates a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)
