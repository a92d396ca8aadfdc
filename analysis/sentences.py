"""Verdicts as sentences, in English or Korean. Every word about a result follows from a `Judgement`; none is typed."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.frame import interval, number, points
from analysis.gates import MIXED_CODE
from analysis.hypotheses import LIFTED, MEDIAN, PUBLISHED, Finding, Judgement
from analysis.load import GridResults, ResultRow
from analysis.registration import Claim, Design, Registration
from analysis.stand_ins import WORDS
from analysis.stats import contrast, holm
from analysis.verdicts import BlockVerdict, ClaimVerdict
from trainable.weights import NOT_PUBLISHED_WEIGHTS

LANGUAGES = ("en", "ko")

_KOREAN = {
    ClaimVerdict.SUPPORTED: "지지",
    ClaimVerdict.CONTRADICTED: "반박",
    ClaimVerdict.MIXED: "혼재",
    ClaimVerdict.INCONCLUSIVE: "판단 불가",
    BlockVerdict.SUPPORTED: "지지",
    BlockVerdict.SUPPORTED_ONE_SEED: "지지*",
    BlockVerdict.CONTRADICTED: "반박",
    BlockVerdict.CONTRADICTED_ONE_SEED: "반박*",
    BlockVerdict.INCONCLUSIVE: "판단 불가",
    BlockVerdict.EQUIVALENT: "동등",
    BlockVerdict.DIFFERENT: "다름",
    BlockVerdict.DIFFERENT_ONE_SEED: "다름*",
    BlockVerdict.NEGLIGIBLE: "다르나 무시할 수준",
    BlockVerdict.UNDECIDED: "미결정",
    BlockVerdict.NOT_ESTIMABLE: "추정 불가",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """One claim with its verdict, ready to be shown."""

    id: str
    claim: str
    verdict: ClaimVerdict
    verdict_text: str
    """The verdict in the language asked for."""
    sentence: str
    would_change: str
    findings: tuple[Finding, ...]


def verdict_text(verdict: ClaimVerdict | BlockVerdict, lang: str = "en") -> str:
    """A verdict's word."""
    return str(verdict) if lang == "en" else _KOREAN[verdict]


def block_name(block: Mapping[str, str], judgement: Judgement, lang: str = "en") -> str:
    """A block in words: its values, by the names of parts where they have one."""
    return _values_name(block, judgement.design, judgement.registration, lang)


def _values_name(block: Mapping[str, str], design: Design, names: Registration, lang: str) -> str:
    shown = []
    for axis, value in block.items():
        part = next((part for part, axes in design.roles.items() if axes == {axis: value}), None)
        shown.append(names.name(part, lang) if part else f"{axis}={value}" if value in ("true", "false") else value)
    return ", ".join(shown) or ("the whole grid" if lang == "en" else "격자 전체")


def finding_name(finding: Finding, judgement: Judgement, lang: str = "en") -> str:
    """A contrast in its block: `γ_C (cifar100, scratch)`."""
    return f"{finding.spec.symbol} ({block_name(finding.block, judgement, lang)})"


def finding_sentence(finding: Finding, judgement: Judgement, lang: str = "en") -> str:
    """One finding in one sentence, for captions and alternative texts."""
    name, verdict = finding_name(finding, judgement, lang), verdict_text(finding.verdict, lang)
    if finding.result is None:
        return f"{name}: {verdict}: {'; '.join(finding.reasons)}."
    seeds = sorted(set(finding.seeds.values()))
    count = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]}–{seeds[-1]}"
    if lang == "ko":
        return f"{name}: {_estimate(finding)} pp, 셀당 시드 {count}개: {verdict}."
    plural = "" if seeds == [1] else "s"
    return f"{name} is {_estimate(finding)} pp with {count} seed{plural} a cell: {verdict}."


def _estimate(finding: Finding) -> str:
    assert finding.result is not None
    return f"{points(finding.result.estimate, 1)} {interval(*finding.result.interval)}"


def cards(judgement: Judgement, lang: str = "en") -> tuple[Card, ...]:
    """A card for every registered claim, in its order."""
    verdicts = judgement.claims()
    return tuple(
        Card(
            id=claim.id,
            claim=claim.text[lang],
            verdict=verdicts[claim.id],
            verdict_text=verdict_text(verdicts[claim.id], lang),
            sentence=_claim_sentence(claim, judgement, lang),
            would_change=_would_change(claim, judgement, lang),
            findings=judgement.of_claim(claim),
        )
        for claim in judgement.registration.claims
    )


_GROUPS = {
    # side of the claim, whether it is of an equivalence
    ("for", False): ("supported", "지지"),
    ("against", False): ("contradicted", "반박"),
    ("open", False): ("inconclusive", "판단 불가"),
    ("missing", False): ("not estimable", "추정 불가"),
    ("for", True): ("equivalent", "동등"),
    ("against", True): ("different", "다름"),
    ("open", True): ("undecided", "미결정"),
    ("missing", True): ("not estimable", "추정 불가"),
}


def _claim_sentence(claim: Claim, judgement: Judgement, lang: str) -> str:
    found = judgement.of_claim(claim)
    equivalence = any(one.spec.test == "equivalent" for one in found)
    parts = []
    for side in ("for", "against", "open", "missing"):
        members = [one for one in found if one.verdict.side == side]
        if members:
            word = _GROUPS[side, equivalence][LANGUAGES.index(lang)]
            listed = "; ".join(_member(one, judgement, lang) for one in members)
            count = f"{word} in {len(members)}" if lang == "en" else f"{word} {len(members)}개"
            parts.append(f"{count} ({listed})")
    verdict = verdict_text(judgement.claims()[claim.id], lang)
    total = f"of {len(found)} contrasts" if lang == "en" else f"대비 {len(found)}개 중"
    text = f"{claim.id}, {claim.text[lang]}: {verdict}. {total[0].upper()}{total[1:]}: {', '.join(parts)}."
    return " ".join([text, *_caveats(found, judgement, lang)])


def _member(finding: Finding, judgement: Judgement, lang: str) -> str:
    name = finding_name(finding, judgement, lang)
    if finding.result is None:
        return f"{name}: {finding.reasons[0]}"
    return f"{name} {_estimate(finding)} pp"


def _caveats(found: Sequence[Finding], judgement: Judgement, lang: str) -> list[str]:
    """What holds of all that was said."""
    said = []
    if any(one.single_seed for one in found):
        everywhere = all(count == 1 for one in found if one.result is not None for count in one.seeds.values())
        said.append(
            f"One seed {'a cell' if everywhere else 'in some cells'} (*): the intervals speak of these checkpoints; "
            "seed variance is unknown."
            if lang == "en"
            else f"{'셀당' if everywhere else '일부 셀은'} 시드 1개(*): 구간은 이 체크포인트에만 해당하며 "
            "시드 분산은 알 수 없다."
        )
    if judgement.reading.evaluation == "best_on_test":
        said.append(
            "The checkpoint was chosen on the test set itself."
            if lang == "en"
            else "체크포인트를 시험 집합에서 골랐다."
        )
    if judgement.reading.evaluation == PUBLISHED:
        said.append(
            "Published values; errors of independent proportions."
            if lang == "en"
            else "발표된 값이며 오차는 독립 비율의 오차이다."
        )
    if any(MIXED_CODE in mark for one in found for mark in one.marks):
        said.append(
            "Some cells compared were trained by different versions of the code."
            if lang == "en"
            else "비교한 셀 일부는 서로 다른 코드로 학습되었다."
        )
    if random := dict.fromkeys(mark for one in found for mark in one.marks if WORDS in mark):
        rows = ", ".join(mark.partition(f": {WORDS}")[0] for mark in random)
        said.append(
            f"The initial weights of {rows} are {NOT_PUBLISHED_WEIGHTS}: nothing follows of the published ones."
            if lang == "en"
            else f"{rows}의 초기 가중치는 공개된 것이 아니라 무작위 대체물이므로 공개된 가중치에 관한 결론이 아니다."
        )
    lifted = dict.fromkeys(mark for one in found for mark in one.marks if LIFTED in mark)
    if lifted:
        said.append(("Health gate lifted: " if lang == "en" else "건강 관문 해제: ") + "; ".join(lifted) + ".")
    if any(one.scales is not None and one.scales.removable for one in found):
        names = ", ".join(finding_name(one, judgement, lang) for one in found if one.scales and one.scales.removable)
        said.append(
            f"Scale-dependent (removable) interaction: {names}."
            if lang == "en"
            else f"척도에 따라 사라질 수 있는 상호작용: {names}."
        )
    reversed_ = ", ".join(finding_name(one, judgement, lang) for one in found if one.reverses)
    if reversed_:
        said.append(f"The sign reverses: {reversed_}." if lang == "en" else f"부호가 뒤집힌다: {reversed_}.")
    return said


def _would_change(claim: Claim, judgement: Judgement, lang: str) -> str:
    """What would change the verdict: the weakest decided contrast, and what is missing."""
    found = judgement.of_claim(claim)
    said = []
    decided = [
        (one.result.tipping_sd, one)
        for one in found
        if one.result is not None and one.verdict.side != "open" and one.result.tipping_sd is not None
    ]
    if decided:
        sd, weakest = min(decided, key=lambda pair: pair[0])
        low, high = judgement.registration.inference.typical_run_sd
        name, typical = finding_name(weakest, judgement, lang), f"{100 * low:.1f}–{100 * high:.1f}"
        beyond = "" if weakest.single_seed else (" more than measured" if lang == "en" else " (측정된 것 외에)")
        said.append(
            f"{name} is the weakest: its interval would reach 0 if runs differed by a standard deviation of "
            f"{number(100 * sd, 1)} pp{beyond} (typical: {typical})."
            if lang == "en"
            else f"가장 약한 것은 {name}: 실행 간 표준편차가 {number(100 * sd, 1)} pp{beyond}이면 구간이 0에 닿는다"
            f"(보통 {typical})."
        )
    reasons = dict.fromkeys(reason for one in found for reason in one.reasons)
    if reasons:
        said.append(("To be mended first: " if lang == "en" else "먼저 해결할 것: ") + "; ".join(reasons) + ".")
    opens = [finding_name(one, judgement, lang) for one in found if one.verdict.side == "open"]
    if opens:
        said.append(
            f"More seeds or images could decide {', '.join(opens)}."
            if lang == "en"
            else f"시드나 이미지가 더 있으면 결정될 수 있다: {', '.join(opens)}."
        )
    return " ".join(said)


def rankings(results: GridResults, judgement: Judgement, lang: str = "en") -> tuple[str, ...]:
    """The arms of every architecture in every block, best first: `>` where the two differ (Holm within the block), `≈`
    where they cannot be told apart. Rows that are gated or missing are named, not ranked."""
    design, names = judgement.design, judgement.registration
    name = judgement.reading.evaluation
    if name in (MEDIAN, PUBLISHED):
        return ()
    arms = _parts_on(design, "mix")
    gated = {reason.split(":")[0] for one in judgement.findings for reason in one.reasons}
    lines = []
    for block, members in _by_block(results, arms, design).items():
        usable = {
            part: row
            for part, row in members.items()
            if row.label not in gated and row.done and all(name in run.evaluations for run in row.done)
        }
        text = _ranked(usable, name, names, lang)
        left = [f"{names.name(part, lang)} ({row.label})" for part, row in members.items() if part not in usable]
        if left:
            text += f"{'; ' if text else ''}{'not ranked' if lang == 'en' else '순위 제외'}: {', '.join(left)}"
        lines.append(f"{_values_name(dict(block), design, names, lang)}: {text}.")
    return tuple(lines)


def _parts_on(design: Design, axis: str) -> dict[str, str]:
    """Value by part, of the parts on one axis."""
    return {part: axes[axis] for part, axes in design.roles.items() if axes.keys() == {axis}}


def _by_block(
    results: GridResults, arms: Mapping[str, str], design: Design
) -> dict[tuple[tuple[str, str], ...], dict[str, ResultRow]]:
    found: dict[tuple[tuple[str, str], ...], dict[str, ResultRow]] = {}
    for row in results.rows:
        part = next((part for part, value in arms.items() if row.axes.get("mix") == value), None)
        if part is not None and not row.is_parent:
            block = tuple((axis, value) for axis, value in row.axes.items() if axis != "mix")
            found.setdefault(block, {})[part] = row
    return found


def _ranked(usable: Mapping[str, ResultRow], name: str, names: Registration, lang: str) -> str:
    if not usable:
        return ""
    answers = {part: np.stack([run.evaluations[name].correct for run in row.done]) for part, row in usable.items()}
    if len({cell.shape[1] for cell in answers.values()}) > 1:
        return "judged on different images"
    order = sorted(answers, key=lambda part: -float(answers[part].mean()))
    pairs = list(itertools.pairwise(order))
    adjusted = holm([contrast({one: 1.0, other: -1.0}, answers).p for one, other in pairs])
    text = ""
    for i, part in enumerate(order):
        text += f"{names.name(part, lang)} {100 * float(answers[part].mean()):.1f}"
        if i < len(pairs):
            text += " > " if adjusted[i] < 0.05 else " ≈ "
    return text


def methods(judgement: Judgement, num_images: Sequence[int], num_seeds: Sequence[int], lang: str = "en") -> str:
    """How the numbers were made, from the registration.

    Args:
        judgement: under the registered reading.
        num_images: test images of every data set.
        num_seeds: seeds of every cell.
        lang: en or ko.
    """
    plan = judgement.registration.inference
    images = ", ".join(f"{count:,}" for count in sorted(set(num_images)))
    seeds = ", ".join(str(count) for count in sorted(set(num_seeds)))
    evaluation, margin, alpha = judgement.reading.evaluation, number(100 * plan.margin, 1), f"{plan.alpha:g}"
    if lang == "ko":
        return (
            f"각 대비는 셀 정확도의 가중합이며, 시험 이미지({images}장)와 시드(셀당 {seeds}개)가 교차한다. "
            f"평가는 {evaluation}. 95 % 구간은 이미지와 시드에 대한 양방향 분산과 Satterthwaite 자유도로 구한다. "
            f"한 묶음의 단측 검정은 Holm으로 함께 보정하고, 동등성은 ±{margin} pp에 대한 두 단측 검정"
            f"(TOST, α = {alpha})이다. 학습 데이터는 고정되어 다른 학습 표본에 대한 주장은 없다. "
            f"학습 집합에도 있는 시험 이미지는 민감도 표의 한 열 외에는 포함된다. {judgement.standing}."
        )
    return (
        f"Every contrast is a weighted sum of cell accuracies; test images ({images}) are crossed with seeds ({seeds} "
        f"a cell). Evaluation: {evaluation}. The 95 % intervals are two-way over images and seeds, with "
        "Satterthwaite's degrees of freedom. The one-sided tests of a family are corrected together (Holm); "
        f"equivalence is two one-sided tests against ±{margin} pp at α = {alpha}. Training data are fixed: nothing is "
        "said of other training samples. Test images that are in the training split too count, but for one column of "
        f"the sensitivity table. The record of the rules: {judgement.standing}."
    )
