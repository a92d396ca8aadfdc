"""Power: the table of the design of the analysis, and what one seed cannot tell."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from analysis.power import Components, components, detectable, main, reachable_margin, seeds_needed
from analysis.registration import registration
from analysis.stats import contrast
from trainable.storage import Storage

PLAN = registration().inference


def of_table(images: float, residual: float, cells: int, sd: float) -> Components:
    """From standard deviations in points at one seed."""
    parts = {"images": (images / 100) ** 2, "residual": (residual / 100) ** 2, "runs": cells * (sd / 100) ** 2}
    return Components(**parts, num_images=10_000, num_cells=cells)


@pytest.mark.parametrize(
    ("seeds", "effects", "margins"),
    [
        (2, (2.0, 2.5, 3.2, 5.5), (2.7, 3.3, 4.2, 7.0)),
        (3, (1.7, 2.0, 2.5, 4.0), (2.4, 2.8, 3.5, 5.6)),
        (5, (1.5, 1.7, 2.0, 3.0), (2.2, 2.4, 2.9, 4.4)),
        (10, (1.4, 1.5, 1.6, 2.3), (2.0, 2.1, 2.4, 3.3)),
        (20, (1.3, 1.3, 1.4, 1.8), (1.9, 1.9, 2.1, 2.6)),
    ],
)
def test_table_of_effects_and_margins(seeds: int, effects: tuple[float, ...], margins: tuple[float, ...]) -> None:
    sds = (0, 0.3, 0.5, 1.0)
    found = [100 * detectable(*of_table(0.43, 0.68, 4, sd).error(seeds), PLAN) for sd in sds]
    assert found == pytest.approx(effects, abs=0.12)
    found = [100 * reachable_margin(*of_table(0.60, 0.94, 8, sd).error(seeds), PLAN) for sd in sds]
    assert found == pytest.approx(margins, abs=0.12)


def test_seeds_needed() -> None:
    assert PLAN.margin == 0.03 and PLAN.smallest_effect == 0.02
    assert seeds_needed(of_table(0.60, 0.94, 8, 0.3), "equivalent", PLAN) == 3
    assert seeds_needed(of_table(0.43, 0.68, 4, 0.5), "greater", PLAN) == 5
    assert seeds_needed(of_table(2.0, 0.68, 4, 0.5), "greater", PLAN) is None  # image noise alone is too much


def test_components_are_those_that_made_the_runs() -> None:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(30):
        cells = {}
        for name in "ab":
            image = rng.normal(size=2000) < 0
            flips = rng.random((4, 2000)) < np.clip(0.2 + rng.normal(0, 0.02, (4, 1)), 0, 1)
            cells[name] = image ^ flips
        known = components(contrast({"a": 1.0, "b": -1.0}, cells), 2000)
        assert known is not None
        found.append((known.images, known.residual, known.runs))
    images, residual, runs = np.mean(found, axis=0)
    assert residual == pytest.approx(2 * 0.2 * 0.8 / 2000, rel=0.1)
    assert images == pytest.approx(2 * 0.25 * 0.6**2 / 2000, rel=0.15)
    assert runs < 2e-5  # flips cancel half and half, so runs hardly differ in accuracy
    assert components(contrast({"a": 1.0}, {"a": cells["a"][:1]}), 2000) is None


def test_one_seed_says_what_cannot_be_known(published_store: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--grid", "paper", "--results", published_store.uri]) == 0
    shown = capsys.readouterr().out
    assert "CANNOT BE KNOWN: how much runs differ from seed to seed" in shown
    assert "known: the error over images alone, 0.9" in shown and "run at least 3 seeds, better 5" in shown
    assert "Exp-5: collapsed (seed 223)" in shown


def test_several_seeds_have_the_table(made_store: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--grid", "demo", "--results", made_store.uri]) == 0
    shown = capsys.readouterr().out
    assert "no number of seeds gets below" in shown and "20 seeds:" in shown and "CANNOT" not in shown
    assert "29 runs an arm" in shown


def test_faults_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--grid", "paper", "--results", str(tmp_path)]) == 2
    assert "analysis.power: --grid paper:" in capsys.readouterr().err
    assert main(["--results", str(tmp_path)]) == 2
    assert f"analysis.power: {tmp_path} holds no grid" in capsys.readouterr().err
    assert main(["--digest"]) == 0
    assert capsys.readouterr().out.strip() == registration().digest


def test_it_is_light(root: Path) -> None:
    code = "import sys, analysis.power, analysis.hypothesis_tables; print({'torch', 'ray'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert shown.stdout.strip() == "set()"
