"""T3 to T6 and the sentences: what they show for the study's counts, and what they must not say."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest

from analysis.frame import GAP, RENDERERS, Frame, to_csv
from analysis.gates import Evidence
from analysis.hypotheses import Judgement, Reading, judge
from analysis.hypothesis_tables import hypothesis_frames
from analysis.load import GridResults
from analysis.registration import registration
from analysis.sentences import LANGUAGES, cards, finding_sentence, methods, rankings
from analysis.verdicts import BlockVerdict, ClaimVerdict

KNOWN = registration()


@pytest.fixture(scope="module")
def study(published_results: GridResults, published_evidence: dict[str, Evidence]) -> Judgement:
    return judge(published_results, published_evidence, KNOWN, Reading(evaluation="best_on_test"))


@pytest.fixture(scope="module")
def made(made_results: GridResults, made_evidence: dict[str, Evidence]) -> Judgement:
    return judge(made_results, made_evidence, KNOWN)


@pytest.fixture(scope="module")
def frames(
    published_results: GridResults, published_evidence: dict[str, Evidence], study: Judgement
) -> dict[str, Frame]:
    return hypothesis_frames(published_results, published_evidence, study)


@pytest.fixture(scope="module")
def made_frames(made_results: GridResults, made_evidence: dict[str, Evidence], made: Judgement) -> dict[str, Frame]:
    return hypothesis_frames(made_results, made_evidence, made)


def lines(frame: Frame) -> dict[tuple[str, ...], dict[str, str]]:
    return {row[: frame.left]: dict(zip(frame.columns, row, strict=True)) for row in frame.rows}


def test_tests_are_the_worked_example(frames: dict[str, Frame]) -> None:
    found = lines(frames["T3"])
    one = found["H1", "γ_C", "cifar100, scratch"]
    assert one["estimate pp"] == "+16.8" and one["95 % CI"] == "[15.0, 18.6]" and one["verdict"] == "SUPPORTED*"
    assert one["σ*"] == "4.3" and one["seeds"] == "1" and one["scale"] == "crossing"
    assert one["cells"] == "Exp-2, Control-1, Exp-4, Control-2"
    gone = found["H2", "γ_M", "tiny-imagenet-200, scratch"]
    assert gone["verdict"] == "NOT ESTIMABLE" and gone["estimate pp"] == gone["p"] == gone["Holm p"] == GAP
    note = next(note for note in frames["T3"].notes if note.startswith(gone["notes"].split()[0]))
    assert note.endswith("Exp-5: collapsed (seed 223)")
    assert [row[8] for row in frames["T3"].rows[-4:]] == ["MIXED", "MIXED", "MIXED", "CONTRADICTED"]
    assert any(note.startswith("*: one seed a cell") for note in frames["T3"].notes)
    assert "chosen on the test set itself" in frames["T3"].notes[0]


def test_one_seed_has_no_test_of_equivalence(frames: dict[str, Frame], made_frames: dict[str, Frame]) -> None:
    one = lines(frames["T4"])["δ_M", "cifar100"]
    assert one["90 % CI"] == "[6.1, 10.6]" and one["verdict"] == "DIFFERENT*" and one["reverses"] == "yes"
    assert one["p TOST"] == one["smallest margin pp"] == GAP
    several = lines(made_frames["T4"])["δ_M", "the whole grid"]
    assert several["verdict"] == "EQUIVALENT" and several["reverses"] == "no" and several["margin pp"] == "±3.0"
    raw = made_frames["T4"].raw[0]
    assert isinstance(raw["low90"], float) and isinstance(raw["high90"], float)
    assert raw["smallest_margin"] == pytest.approx(max(-raw["low90"], raw["high90"]))
    assert isinstance(raw["p_tost"], float) and raw["p_tost"] < 0.05


def test_sensitivity_shows_both_readings_of_the_gate(frames: dict[str, Frame], made_frames: dict[str, Frame]) -> None:
    found = lines(frames["T5"])["H2", "γ_M", "tiny-imagenet-200, scratch"]
    assert found["best on test"] == "n.e." and found["health gate off"] == "+32.8 SUPPORTED*"
    row = lines(frames["T5"])["H2", "γ_M", "cifar100, scratch"]
    assert [row[name].split()[0] for name in ("best on test", "final", "median of last", "log-odds")] == [
        "−4.8",  # noqa: RUF001
        "−3.4",  # noqa: RUF001
        "−3.2",  # noqa: RUF001
        "−0.15",  # noqa: RUF001
    ]
    assert "seeds only" not in frames["T5"].columns
    assert {"seeds only", "without seed 1", "without seed 3"} <= set(made_frames["T5"].columns)
    assert [row[3] for row in made_frames["T5"].rows[-4:]] == ["SUPPORTED"] * 4


def test_power_with_one_seed_and_with_several(frames: dict[str, Frame], made_frames: dict[str, Frame]) -> None:
    one = lines(frames["T6"])["γ_C", "cifar100, scratch"]
    assert one["error pp"] == "0.91" and one["MDE pp"] == one["seeds needed"] == GAP and one["notes"] == "one seed"
    assert "cannot be known" in " ".join(frames["T6"].notes)
    raw = made_frames["T6"].raw[0]
    assert raw["num_seeds"] == 3 and isinstance(raw["mde"], float) and isinstance(raw["mde_at_plus_5"], float)
    assert 0 < raw["mde_at_plus_5"] < raw["mde"] and raw["seeds_needed"] is not None
    shares = [raw[f"share_{name}"] for name in ("images", "seeds", "residual")]
    assert all(isinstance(share, float) for share in shares)


def test_every_format_renders_and_is_byte_stable(
    frames: dict[str, Frame],
    published_results: GridResults,
    published_evidence: dict[str, Evidence],
    study: Judgement,
) -> None:
    again = hypothesis_frames(published_results, published_evidence, study)
    for name, frame in frames.items():
        assert all(len(row) == len(frame.columns) for row in frame.rows) and set(frame.narrow) <= set(frame.columns)
        assert all(raw.keys() == frame.raw[0].keys() for raw in frame.raw)
        for render in RENDERERS.values():
            assert render(frame) == render(again[name])
        assert len(list(csv.DictReader(io.StringIO(to_csv(frame))))) == len(frame.rows)


FALSE = ("MixUp 27.7 > CutMix 18.6 > default", "always best", "+25")


@pytest.mark.parametrize("lang", LANGUAGES)
def test_sentences_are_those_of_the_numbers(study: Judgement, published_results: GridResults, lang: str) -> None:
    found = {card.id: card for card in cards(study, lang)}
    assert [found[name].verdict for name in ("H1", "H2", "H3")] == [
        ClaimVerdict.MIXED,
        ClaimVerdict.MIXED,
        ClaimVerdict.CONTRADICTED,
    ]
    assert "+16.8 [15.0, 18.6] pp" in found["H1"].sentence
    assert "Exp-5: collapsed (seed 223)" in found["H2"].sentence and "Exp-13" in found["H2"].would_change
    assert "0.8 pp" in found["H2"].would_change  # how little it takes
    ranked = rankings(published_results, study, lang)
    default = "default" if lang == "en" else "기본"
    assert len(ranked) == 8
    assert (
        f"ResNet, {'scratch' if lang == 'en' else '처음부터 학습'}: CutMix 57.5 > MixUp 54.6 > {default}" in ranked[0]
    )
    assert f"MixUp 27.7 > {default} 23.8 > CutMix 18.6" in " ".join(ranked)
    assert f"{default} 66.6 > CutMix 48.8" in " ".join(ranked) and "MixUp 14.2" not in " ".join(ranked)
    everything = " ".join([*(card.sentence + card.would_change for card in found.values()), *ranked])
    assert not any(text in everything for text in FALSE)


def test_sentences_in_english(study: Judgement, made: Judgement) -> None:
    by_id = {card.id: card for card in cards(study)}
    text = by_id["H1"].sentence
    assert text.startswith("H1, ResNet gains more from CutMix than ViT does: MIXED. Of 4 contrasts: supported in 1 (")
    assert "contradicted in 3 (" in text and "One seed a cell (*)" in text and "chosen on the test set itself" in text
    assert "The sign reverses: δ_C (cifar100), δ_M (cifar100)." in by_id["H3"].sentence
    plain = {card.id: card for card in cards(made)}["H1"]
    assert "One seed" not in plain.sentence and "SUPPORTED. Of 2 contrasts: supported in 2 (" in plain.sentence
    assert "more than measured" in plain.would_change
    first = made.findings[0]
    assert finding_sentence(first, made).endswith("pp with 3 seeds a cell: SUPPORTED.")
    gated = next(one for one in study.findings if one.verdict is BlockVerdict.NOT_ESTIMABLE)
    assert finding_sentence(gated, study) == (
        "γ_M (tiny-imagenet-200, scratch): NOT ESTIMABLE: Exp-5: collapsed (seed 223)."
    )


def test_one_seed_in_some_cells_is_said(made_results: GridResults, made_evidence: dict[str, Evidence]) -> None:
    rows = tuple(replace(row, runs=row.runs[:1]) if row.label == "vit-pre-cutmix" else row for row in made_results.rows)
    found = judge(replace(made_results, rows=rows), made_evidence, KNOWN)
    by_id = {card.id: card for card in cards(found)}
    assert "One seed in some cells (*)" in by_id["H1"].sentence and "One seed" not in by_id["H2"].sentence
    assert by_id["H3"].verdict is ClaimVerdict.INCONCLUSIVE  # equivalence needs several seeds in every cell
    assert found.of("gamma_cutmix")[1].verdict is BlockVerdict.SUPPORTED_ONE_SEED


def test_arms_that_cannot_be_told_apart_are_not_ranked(
    made: Judgement, made_results: GridResults, made_evidence: dict[str, Evidence]
) -> None:
    rows = {row.label: row for row in made_results.rows}
    tied = replace(rows["resnet-mixup"], runs=rows["resnet-cutmix"].runs)
    known = replace(made_results, rows=tuple(tied if row.label == tied.label else row for row in made_results.rows))
    assert "≈" in rankings(known, made)[0] and "≈" not in rankings(made_results, made)[0]


def test_methods_name_what_was_registered(made: Judgement) -> None:
    text = methods(made, [4000], [3])
    assert "(4,000)" in text and "(3 a cell)" in text and "±3.0 pp at α = 0.05" in text
    assert KNOWN.digest[:12] in text and KNOWN.digest[:12] in methods(made, [4000], [3], "ko")
