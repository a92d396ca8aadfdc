"""The registration: what is in it, and that nobody changes it unseen."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from analysis.registration import FILE, RegistrationError, registration


def test_the_file_is_the_one_that_its_history_names() -> None:
    """Whoever changes the file adds a line to its history: `python -m analysis.power --digest` prints what goes there."""
    found = registration()
    assert found.history[-1][1] == found.digest
    assert [at for at, _ in found.history] == sorted(at for at, _ in found.history)


def test_weights_are_the_stated_contrasts() -> None:
    found = {spec.id: spec.weights for spec in registration().contrasts}
    cutmix, mixup = found["gamma_cutmix"], found["gamma_mixup"]
    total = {cell: cutmix.get(cell, 0) + mixup.get(cell, 0) for cell in {*cutmix, *mixup}}
    assert {cell: weight for cell, weight in total.items() if weight} == found["kappa"]
    for gamma, delta in (("gamma_cutmix", "delta_cutmix"), ("gamma_mixup", "delta_mixup")):
        signs = {"pretrained": 1, "scratch": -1}
        expected = {f"{cell}.{part}": s * weight for cell, weight in found[gamma].items() for part, s in signs.items()}
        assert found[delta] == expected
    assert found["gamma_cutmix"] == {"R.C": 1, "R.D": -1, "V.C": -1, "V.D": 1}


def test_standing() -> None:
    found = registration()
    at = found.history[-1][0]
    assert found.standing([at + timedelta(days=1)] * 3).endswith("unchanged since before the first run")
    assert found.standing([at - timedelta(days=1), at + timedelta(days=1)]).endswith("registered after 1 of 2 runs")


def changed(tmp_path: Path, old: str, new: str) -> Path:
    path = tmp_path / "changed.toml"
    text = FILE.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return path


def test_a_change_without_an_entry_is_said(tmp_path: Path) -> None:
    found = registration(changed(tmp_path, "margin = 0.03", "margin = 0.3"))
    assert "CHANGED without an entry in its history: amended after 2 runs" in found.standing([datetime.now(UTC)] * 2)
    assert found.digest != registration().digest


def test_an_entry_makes_it_an_amendment(tmp_path: Path) -> None:
    entry = f'[[history]]\nat = 2099-01-01T00:00:00Z\nsha256 = "{registration().digest}"\nwhy = "again"\n\n[inference]'
    found = registration(changed(tmp_path, "[inference]", entry))
    assert found.digest == registration().digest
    assert found.standing([datetime.now(UTC)]).endswith("amended after 1 of 1 runs")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"R.C" = 1,', '"R.C" = 2,', "weights of gamma_cutmix sum to 1"),
        ('"R.C" = 1,', '"Q.C" = 1,', 'gamma_cutmix: part "Q" is no role of design paper'),
        ('contrasts = ["kappa"]', 'contrasts = ["kapa"]', 'claims name the contrast "kapa"; known are'),
        ("alpha = 0.05", "alpha = ", "changed.toml: Invalid value"),
        ("alpha = 0.05", "", "changed.toml: .*alpha"),
        ("[inference]", "[inferences]", "changed.toml: lacks 'inference'"),
    ],
)
def test_faults_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(RegistrationError, match=message):
        registration(changed(tmp_path, old, new))
