"""The report: one page that needs nothing, the same for the same store, and honest about what is missing."""

from __future__ import annotations

import hashlib
import json
import re
import string
from pathlib import Path
from typing import Any

import pytest
from dashboard import browser
from synthetic import CONTENT, design, noisy, tables_of, write_manifest_of, write_run

from analysis import report, report_page
from analysis.figures import FIGURES
from analysis.frame import MINUS, Frame, to_html, to_tex
from analysis.report import main
from analysis.report_content import words
from analysis.report_found import read_frame
from analysis.report_svg import SvgError, inline_svg
from trainable import records, schemas
from trainable.records import to_parquet
from trainable.storage import Storage

EVIL = '<script>alert("x")</script>'
IMAGES, CLASSES = 150, 5
NEVER, FAILED, SICK = "red-vit-pre-mixup", "red-resnet-pre-none", "red-vit-scratch-mixup"
WIDTHS = (390, 800, 1400)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """Twelve rows with two seeds: one row never ran, one seed failed, one collapsed, and names that would be HTML."""
    import numpy as np
    import pyarrow as pa

    storage = Storage(str(tmp_path_factory.mktemp("results")))
    specs = {label.replace("red-vit-scratch-none", EVIL): runs for label, runs in design(12, 2, ("red",)).items()}
    for label, spec in [(label, spec) for label, runs in specs.items() for spec in runs if label != NEVER]:
        if (label, spec.seed) == (FAILED, 2):
            records.start_attempt(storage, spec.run_id, "a1", {"host": "machine", "pid": 1, "number": 1})
            records.end_attempt(storage, spec.run_id, "a1", "failed", f"RuntimeError: {EVIL} {{braces}} & more")
            continue
        curve = [0.5, 0.4, *[0.1] * 8] if (label, spec.seed) == (SICK, 1) else [0.1 * i for i in range(1, 11)]
        accuracy = noisy({"none": 0.5, "mixup": 0.6, "cutmix": 0.7})
        write_run(storage, spec, tables_of(spec, images=IMAGES, classes=CLASSES, curve=curve, logits=accuracy))
    named = {
        "dataset": pa.array(["red"] * CLASSES).dictionary_encode(),
        "content_sha256": [CONTENT["red"]] * CLASSES,
        "label": np.arange(CLASSES),
        "name": [f"{EVIL}{number}" for number in range(CLASSES)],
    }
    columns = {field.name: named.get(field.name, pa.nulls(CLASSES, field.type)) for field in schemas.CLASSES}
    path = f"dims/classes/red--{CONTENT['red'][:16]}.parquet"
    storage.publish(path, to_parquet(pa.table(columns).cast(schemas.CLASSES)))
    write_manifest_of(storage, specs)
    return storage


@pytest.fixture(scope="module")
def written(store: Storage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the report."""
    out = tmp_path_factory.mktemp("reports")
    assert main(["--results", store.uri, "--out", str(out)]) == 0
    return out / "made"


@pytest.fixture(scope="module")
def lone(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """A grid of one run."""
    storage = Storage(str(tmp_path_factory.mktemp("lone")))
    (label, (spec,)), *_ = design(1, 1).items()
    write_run(storage, spec, tables_of(spec, images=40, classes=CLASSES, epochs=2))
    write_manifest_of(storage, {label: [spec]})
    return storage


@pytest.fixture
def few_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "FIGURES", tuple(kind for kind in FIGURES if kind.id in ("F2", "F15")))


def hashes(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


LOOK = """
const wide = document.documentElement.clientWidth;
const pictures = [...document.querySelectorAll("svg, img")];
const ids = [...document.querySelectorAll("[id]")].map(one => one.id);
return {
  overflow: document.documentElement.scrollWidth - wide,
  outside: [...document.querySelectorAll("main *")].filter(one => one.getBoundingClientRect().right > wide + 1
    && !one.closest(".table, .canvas")).map(one => one.outerHTML.slice(0, 80)),
  pictures: pictures.length,
  untold: pictures.filter(one => !(one.getAttribute("aria-label") || one.getAttribute("alt"))).length,
  twice: ids.filter((one, i) => ids.indexOf(one) !== i),
  lost: [...document.querySelectorAll("a, use")].map(one => one.getAttribute("href"))
    .filter(one => !document.getElementById(one.slice(1))),
  loaded: performance.getEntriesByType("resource").map(one => one.name).filter(one => !one.startsWith("data:")),
  small: [...document.querySelectorAll("body *")].filter(one => one.childNodes.length && !one.closest("svg, caption, sup")
    && parseFloat(getComputedStyle(one).fontSize) < 11).length,
  scripts: document.scripts.length,
  text: document.body.textContent,
};
"""


def test_the_page_reads_everywhere_and_asks_for_nothing(written: Path, tmp_path: Path) -> None:
    with browser(tmp_path / "profile") as chrome:
        for width in WIDTHS:
            metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
            chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            chrome.get((written / "report.html").as_uri())
            chrome.execute_script("document.querySelectorAll('details').forEach(one => { one.open = true })")
            seen: dict[str, Any] = chrome.execute_script(LOOK)
            assert seen["overflow"] <= 0 and not seen["outside"], f"{width} px: {seen['outside'][:3]}"
            assert seen["pictures"] > 20 and not seen["untold"]
            assert not seen["twice"] and not seen["lost"] and not seen["loaded"] and not seen["small"]
            assert seen["scripts"] == 0 and EVIL in seen["text"]
        assert chrome.get_log("browser") == []


def test_text_of_strangers_stays_text(written: Path) -> None:
    page, markdown = ((written / name).read_text() for name in ("report.html", "report.md"))
    assert "<script" not in page.lower() and "<script" not in markdown.lower()
    assert not re.findall(r'\s(?:src|href)="(?!data:|#)', page), "an address that a browser would follow"
    assert "RuntimeError: &lt;script&gt;" in page and "{braces} &amp; more" in page
    assert not re.findall(r"<[a-z][^>]*\son[a-z]+=", page)


def test_what_is_missing_is_said_first(written: Path) -> None:
    page = (written / "report.html").read_text()
    top = page[page.index("<aside>") : page.index("</aside>")]
    assert "3 of 24 runs are not done" in top and f"{FAILED} seed 2 (failed: RuntimeError" in top
    assert f"{NEVER} seed 1 (not run)" in top
    assert f"{SICK}: collapsed (seed 1)" in top and f"Some cells have one seed ({FAILED})" in top
    cards = page[page.index('class="cards"') : page.index('id="contrasts"')]
    assert f"{SICK}: collapsed (seed 1)" in cards and NEVER in cards


def test_order_is_verdicts_then_evidence(written: Path) -> None:
    page = (written / "report.html").read_text()
    places = [
        page.index(f'id="{name}"') for name in ("verdicts", "F1", "F2", "T2", "F3", "T4", "T5", "T3", "T6", "F14")
    ]
    places += [
        page.index(f'id="{name}"') for name in ("F15", "completeness", "F4", "T1", "F5", "F6", "T10", "features")
    ]
    places += [page.index(f'id="{name}"') for name in ("T11", "F16", "methods", "T12", "versions")]
    assert places == sorted(places)


def test_paper_has_tables_and_figures(written: Path) -> None:
    drawn = {path.stem for path in written.glob("F*.svg")}
    assert drawn == {path.stem for path in (written / "paper").glob("F*.pdf")} and len(drawn) > 20
    assert {path.stem for path in written.glob("T*.csv")} == {path.stem for path in (written / "paper").glob("T*.tex")}
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", (written / "report.md").read_text()):
        assert (written / picture).exists()


def test_one_run_gives_a_report_and_the_same_bytes(lone: Storage, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert main(["--results", lone.uri, "--grid", "made", "--out", str(tmp_path / name)]) == 0
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    page = (tmp_path / "a" / "made" / "report.html").read_text()
    assert "No hypothesis is judged here: grid made: has the parts of no registered design" in page
    assert 'id="T1"' in page and 'id="literature"' not in page
    assert "F5 (Gains over the default) is not made: the grid has no axis mix" in page


def test_nothing_done_says_so(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "results"))
    write_manifest_of(storage, design(12, 1, ("red",)))
    assert main(["--results", storage.uri, "--out", str(tmp_path)]) == 0
    page = (tmp_path / "made" / "report.html").read_text()
    assert "No run of this grid is done yet: python -m tuner.run --grid made" in page
    assert "0 of 12 runs done" in page and 'id="F15"' in page and 'class="cards"' not in page


@pytest.mark.usefixtures("few_figures")
def test_published_verdicts_in_korean(published_store: Storage, tmp_path: Path) -> None:
    assert main(["--results", published_store.uri, "--out", str(tmp_path), "--lang", "ko"]) == 0
    page = (tmp_path / "paper" / "report.html").read_text()
    assert '<html lang="ko">' in page and "모든 셀의 시드가 1개이다" in page
    cards = re.findall(r'<h3>(\w+)</h3> <span class="verdict">([^<]+)</span>', page)
    assert cards == [("H1", "혼재"), ("H2", "혼재"), ("Main", "판단 불가"), ("H3", "반박")]
    context = page[page.index('id="literature"') : page.index('id="methods"')]
    assert (
        "OpenMixup" in context
        and all(f"{MINUS}{number}" in context for number in ("5.3", "4.15"))
        and "+2.1" in context
    )


@pytest.mark.usefixtures("few_figures")
def test_features_are_shown_where_they_are_of_these_runs(lone: Storage, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    options = ["--results", lone.uri, "--out", str(tmp_path)]
    assert main(options) == 0
    command = "python -m analysis.features --grid made"
    assert (folder / "report.html").read_text().count(command) == 1
    facts = json.loads((folder / "F15.json").read_text())
    (folder / "F12-a.png").write_bytes(b"\x89PNG")
    (folder / "F12-a.json").write_text(json.dumps({**facts, "figure": "F12", "alt": 'heat "on" paws', "caption": EVIL}))
    frame = Frame(
        title="T13",
        notes=(f"[1] {EVIL}",),
        columns=("arm", EVIL),
        left=1,
        narrow=(),
        rows=(("ResNet", "a < b & c"),),
        raw=(),
    )
    (folder / "T13.html").write_text(to_html(frame))
    (folder / "T13.tex").write_text(to_tex(frame))
    assert main(options) == 0
    assert read_frame(folder / "T13.html") == frame and (folder / "paper" / "T13.tex").exists()
    page = (folder / "report.html").read_text()
    assert "a &lt; b &amp; c" in page and 'id="T13"' in page
    assert 'alt="heat &#34;on&#34; paws"' in page and "data:image/png;base64,iVBORw==" in page and "<script" not in page
    stale = dict.fromkeys(facts["inputs_sha256"], "0" * 64)
    (folder / "F12-a.json").write_text(json.dumps({**facts, "figure": "F12", "inputs_sha256": stale}))
    assert main(options) == 0
    page = (folder / "report.html").read_text()
    assert (
        "data:image/png" not in page
        and 'id="T13"' not in page
        and "F12 was made from other runs than those of this report" in page
    )


@pytest.mark.usefixtures("few_figures")
def test_a_page_has_a_limit_and_names_what_is_beyond(
    lone: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_page, "PICTURE_BYTES", 100)
    monkeypatch.setattr(report_page, "TABLE_ROWS", 0)
    assert main(["--results", lone.uri, "--out", str(tmp_path)]) == 0
    page = (tmp_path / "made" / "report.html").read_text()
    assert "<svg" not in page and "F15 is left out to keep this page small; it lies beside it as F15.svg." in page
    assert "1 further rows: see T1.csv." in page


def test_pictures_share_a_page_without_touching_each_other() -> None:
    drawn = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 100 50">'
        "<style>*{fill: red}</style><script>1</script><defs><path id='m' d='M 0 0'/></defs>"
        "<g id='lost' onclick='x()'><use xlink:href='#m' clip-path='url(#m)'/><use xlink:href='http://a.b/c'/></g>"
        "<text>id=\"m\" &lt;b&gt;</text><g id='caption'><text>one</text><text>two</text></g></svg>"
    )
    shown = inline_svg(drawn, "p1-", 'a "b"')
    assert 'id="p1-m"' in shown and 'href="#p1-m"' in shown and "url(#p1-m)" in shown
    assert 'id="m" &lt;b&gt;' in shown and 'aria-label="a &quot;b&quot;"' in shown
    assert not re.search("style>|script|lost|onclick|http|one|two", shown)
    assert 'viewBox="0 0 100 33.1"' in shown
    for broken in ("<svg", "<html/>", '<svg xmlns="http://www.w3.org/2000/svg"/>'):
        with pytest.raises(SvgError, match="not an SVG"):
            inline_svg(broken, "p1-", "")


def test_both_languages_say_the_same() -> None:
    def places(entry: dict[str, Any]) -> dict[str, Any]:
        return {
            key: places(value) if isinstance(value, dict) else {name for _, name, *_ in string.Formatter().parse(value)}
            for key, value in entry.items()
        }

    assert {key for key, value in words("ko").items() if value} >= {key for key, value in words("en").items() if value}
    english, korean = places(words("en")), places(words("ko"))
    assert (
        english["sections"].keys() == korean["sections"].keys() and english["titles"].keys() == korean["titles"].keys()
    )
    for key in english.keys() - {"sections", "titles"}:
        assert english[key] - {None} == korean[key] - {None}, key
    assert {kind.id for kind in FIGURES} <= words("en")["titles"].keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--grid", "none"], "analysis.report: --grid none: "),
        (["--variant", "12345678"], "analysis.report: grid made: choose one of its 1 variants: --variant full"),
    ],
)
def test_an_unknown_grid_is_refused(
    options: list[str], message: str, lone: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--results", lone.uri, "--out", str(tmp_path / "out"), *options]) == 2
    assert capsys.readouterr().err.startswith(message)
    assert not (tmp_path / "out").exists()
