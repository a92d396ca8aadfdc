"""The results table of a grid: the study's rows in its order, published value beside ours, gaps shown as gaps.

    python -m analysis.tables [--grid paper]

Every format is written from one display frame, so that no two of them can differ.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from analysis.load import AnalysisError, Evaluation, GridResults, ResultRow, SeedRun, grid_names, load_results
from analysis.stats import contrast, wilson
from trainable.records import RecordError
from trainable.storage import Storage, StorageError

GAP = "—"
MINUS = "\N{MINUS SIGN}"
FORMATS = ("md", "csv", "tex")
_METRICS = (
    ("top5", "top-5 %"),
    ("precision_macro", "precision %"),
    ("recall_macro", "recall %"),
    ("f1_macro", "F1 %"),
    ("nll_nats", "NLL"),
    ("ece_em15", "ECE %"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """A table ready to be rendered: all cells are text, the numbers behind them stand in `raw`."""

    title: str
    notes: tuple[str, ...]
    """Watermarks first, then footnotes in the order of their marks."""
    columns: tuple[str, ...]
    left: int
    """How many of the first columns are text and left-aligned."""
    narrow: tuple[str, ...]
    """The columns shown on a terminal."""
    rows: tuple[tuple[str, ...], ...]
    raw: tuple[dict[str, float | int | str | None], ...]
    """For CSV: fractions, not percent."""


def results_frame(results: GridResults) -> Frame:
    """T1: one line a row of the grid.

    `final` is the last step's evaluation, the primary one. `best_on_test` chose its epoch on the test set, as the
    study did, and stands there only to be set beside the published value.
    """
    axes = list(dict.fromkeys(axis for row in results.rows for axis in row.axes))
    published = any(row.published for row in results.rows)
    selected = [name for name in ("best_on_val", "best_on_test") if _has(results, name)]
    footnotes: list[str] = []
    lines = [_line(row, axes, published, selected, results, footnotes) for row in results.rows]
    columns = tuple(lines[0][0])
    shown = {"run", *axes, "seeds", "published %", *(f"{name} %" for name in selected), "difference", "final %"}
    shown |= {"95 % CI", "notes"}
    return Frame(
        title=f"grid {results.name}: {results.help.strip()}",
        notes=(*_watermarks(results), *_legend(results, published, selected), *footnotes),
        columns=columns,
        left=1 + len(axes),
        narrow=tuple(column for column in columns if column in shown),
        rows=tuple(tuple(cells.values()) for cells, _ in lines),
        raw=tuple(raw for _, raw in lines),
    )


Raw = dict[str, float | int | str | None]


def _line(
    row: ResultRow, axes: list[str], published: bool, selected: list[str], results: GridResults, footnotes: list[str]
) -> tuple[dict[str, str], Raw]:
    """One row as cells by column, and as numbers."""
    done = row.done
    label = f"{row.label} (parent)" if row.is_parent else row.label
    cells = {"run": label, **{axis: row.axes.get(axis, "") for axis in axes}, "seeds": str(len(done))}
    if row.axes.get("dataset") in _unpublished(results):
        cells["dataset"] += "*"
    raw: Raw = {"run": row.label, **{axis: row.axes.get(axis, "") for axis in axes}, "num_seeds": len(done)}
    raw["run_ids"] = " ".join(run.run_id for run in row.runs)
    if published:
        value = row.published.get("top1")
        cells["published %"], raw["published_top1"] = _percent(value), value
    for name in selected:
        mean = _mean(done, name, "top1")
        cells[f"{name} %"], raw[f"{name}_top1"] = _percent(mean), mean
    if published:
        ours = _mean(done, results.published_eval or "final", "top1")
        theirs = row.published.get("top1")
        gap = ours - theirs if ours is not None and theirs is not None else None
        cells["difference"], raw["difference"] = _points(gap), gap
    mean, (low, high), deviation = _top1(done)
    cells["final %"] = _percent(mean) + (f" ± {_percent(deviation)}" if deviation is not None else "")
    cells["95 % CI"] = GAP if low is None or high is None else f"[{_percent(low, 1)}, {_percent(high, 1)}]"
    raw |= {"final_top1": mean, "final_top1_sd": deviation, "final_top1_low": low, "final_top1_high": high}
    for metric, title in _METRICS:
        value = _mean(done, "final", metric)
        cells[title] = _number(value) if metric == "nll_nats" else _percent(value)
        raw[f"final_{metric}"] = value
    marks = _marks(row, footnotes)
    cells["notes"], raw["notes"] = marks, "; ".join(_remarks(row))
    return cells, raw


def _has(results: GridResults, name: str) -> bool:
    return any(name in run.evaluations for row in results.rows for run in row.done) or results.published_eval == name


def _mean(runs: tuple[SeedRun, ...], name: str, metric: str) -> float | None:
    values = [run.evaluations[name].metrics[metric] for run in runs if name in run.evaluations]
    return float(np.mean(values)) if values else None


def _top1(runs: tuple[SeedRun, ...]) -> tuple[float | None, tuple[float | None, float | None], float | None]:
    """Mean, 95 % interval and (with several seeds) standard deviation of `final` top-1."""
    found: list[Evaluation] = [run.evaluations["final"] for run in runs if "final" in run.evaluations]
    if not found:
        return None, (None, None), None
    if len(found) == 1:
        correct = found[0].correct
        return found[0].metrics["top1"], wilson(int(correct.sum()), len(correct)), None
    if any(not np.array_equal(one.sample_ids, found[0].sample_ids) for one in found):
        raise AnalysisError(f"runs {', '.join(run.run_id for run in runs)}: seeds of one row judged different images")
    result = contrast({"row": 1.0}, {"row": np.stack([one.correct for one in found])})
    low, high = (min(1.0, max(0.0, bound)) for bound in result.interval)
    return result.estimate, (low, high), float(np.std([one.metrics["top1"] for one in found], ddof=1))


def _remarks(row: ResultRow) -> list[str]:
    """What a reader must know of a row, each once, with the seeds it concerns where they are several."""
    remarks: dict[str, list[int]] = {}
    if not row.runs:
        remarks["not selected yet"] = []
    for run in row.runs:
        if run.status != "done":
            known = run.status.upper() if run.status in ("failed", "blocked") else ""
            text = f"{known}: {run.reason}" if known else run.reason
            remarks.setdefault(text, []).append(run.seed)
        elif run.trial["attempt_numerics_changed"]:
            remarks.setdefault("resumed under other numerics (threads, libraries or device)", []).append(run.seed)
    several = len(row.runs) > 1
    found = [f"seed {', '.join(map(str, seeds))}: {text}" if several else text for text, seeds in remarks.items()]
    note = row.published.get("note")
    return [*found, f"published: {note}"] if note else found


def _marks(row: ResultRow, footnotes: list[str]) -> str:
    """Numbers of the footnotes of a row; equal remarks share a number."""
    numbers = []
    for remark in _remarks(row):
        known = [note.split(" ", 1)[1] for note in footnotes]
        if remark not in known:
            footnotes.append(f"[{len(footnotes) + 1}] {remark}")
            known.append(remark)
        numbers.append(f"[{known.index(remark) + 1}]")
    return " ".join(numbers)


def _watermarks(results: GridResults) -> list[str]:
    changed = {key: value for key, value in results.overrides.items() if not _is_data(key, value)}
    marks = []
    if changed:
        shown = ", ".join(f"{key}={value}" for key, value in changed.items())
        marks.append(f"SHORT OR CHANGED RUN ({shown}): not to be compared with published values")
    marks += [f"* {name}: not the published data" for name in sorted(_unpublished(results))]
    if results.other_variants:
        marks.append(f"other variants in this store: {', '.join(results.other_variants)} (--variant)")
    return marks


def _unpublished(results: GridResults) -> set[str]:
    """Data sets of this grid's runs whose content is not the published one."""
    trials = [run.trial for row in results.rows for run in row.done]
    return {str(trial["dataset"]) for trial in trials if not trial["dataset_published"]}


def _is_data(key: str, value: object) -> bool:
    """Whether an override only tells that other data were prepared; the trials say that themselves."""
    return key.startswith("data.") and isinstance(value, str) and len(value) == 64


def _legend(results: GridResults, published: bool, selected: list[str]) -> list[str]:
    trials = [run.trial for row in results.rows for run in row.done]
    if not trials:
        return []
    several = any(len(row.done) > 1 for row in results.rows)
    lines = ["final: after the last step" + (", mean over seeds ± standard deviation" if several else "")]
    if any(len(row.done) == 1 for row in results.rows):
        lines.append("95 % CI of one seed: Wilson, for this checkpoint on other images; seed variance unknown")
    if several:
        lines.append("95 % CI of several seeds: two-way over images and seeds")
    if "best_on_test" in selected:
        lines.append(
            "best_on_test: epoch chosen on the test set itself, so optimistic; to be set beside published values"
        )
    if published:
        lines.append(f"difference: ours ({results.published_eval or 'final'}) less published, in percentage points")
    return lines


def _percent(fraction: object, digits: int = 2) -> str:
    return f"{100 * fraction:.{digits}f}" if isinstance(fraction, float | int) else GAP


def _points(fraction: float | None) -> str:
    return GAP if fraction is None else f"{100 * fraction:+.2f}".replace("-", MINUS)


def _number(value: float | None) -> str:
    return GAP if value is None else f"{value:.3f}"


def to_markdown(frame: Frame) -> str:
    """GitHub's Markdown."""
    aligned = [":--" if i < frame.left or column == "notes" else "--:" for i, column in enumerate(frame.columns)]
    table = [frame.columns, tuple(aligned), *frame.rows]
    body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table]
    return "\n".join([f"### {frame.title}", "", *body, "", *(f"- {note}" for note in frame.notes), ""])


def to_csv(frame: Frame) -> str:
    """Numbers as fractions, empty where there is none."""
    sink = io.StringIO()
    writer = csv.DictWriter(sink, list(frame.raw[0]), lineterminator="\n")
    writer.writeheader()
    for row in frame.raw:
        writer.writerow({key: repr(value) if isinstance(value, float) else value for key, value in row.items()})
    return sink.getvalue()


_TEX = {"\\": r"\textbackslash{}", "_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$", "{": r"\{", "}": r"\}"}
_TEX |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", MINUS: "$-$", "±": r"$\pm$", GAP: "---"}


def to_tex(frame: Frame) -> str:
    """A booktabs tabular with its notes beneath."""

    def tex(text: str) -> str:
        return "".join(_TEX.get(character, character) for character in text)

    aligned = "".join("l" if i < frame.left or name == "notes" else "r" for i, name in enumerate(frame.columns))
    rows = [" & ".join(map(tex, row)) + r" \\" for row in frame.rows]
    lines = [
        r"\begin{tabular}{" + aligned + "}",
        r"\toprule",
        " & ".join(map(tex, frame.columns)) + r" \\",
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}",
        *(r"\par\footnotesize " + tex(note) for note in frame.notes),
    ]
    return "\n".join(lines) + "\n"


RENDERERS: dict[str, Callable[[Frame], str]] = {"md": to_markdown, "csv": to_csv, "tex": to_tex}


def show(frame: Frame, console: Console) -> None:
    """Prints the frame's narrow columns and its notes."""
    table = Table(box=None, pad_edge=False)
    shown = [i for i, name in enumerate(frame.columns) if name in frame.narrow and any(row[i] for row in frame.rows)]
    for i in shown:
        left = i < frame.left or frame.columns[i] == "notes"
        table.add_column(frame.columns[i], justify="left" if left else "right", no_wrap=True)
    for row in frame.rows:
        table.add_row(*(row[i] for i in shown))
    console.print(frame.title, style="bold", markup=False, highlight=False, soft_wrap=True)
    console.print(table)
    for note in frame.notes:
        console.print(f"  {note}", markup=False, highlight=False, soft_wrap=True)


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m analysis.tables`."""
    cli = argparse.ArgumentParser(prog="python -m analysis.tables", description="Print and write a grid's results.")
    cli.add_argument("--grid", metavar="NAME", help="default: every grid in the store")
    cli.add_argument("--variant", help="full, or the hash of a shortened variant")
    cli.add_argument("--results", default="results", metavar="URI", help="results root (default: results)")
    cli.add_argument("--out", type=Path, default=Path("reports"), metavar="DIR", help="default: reports")
    cli.add_argument("--format", default=",".join(FORMATS), help=f"any of {','.join(FORMATS)} (default: all)")
    return cli


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 when nothing could be shown."""
    options = parser().parse_args(argv)
    formats = options.format.split(",")
    if unknown := [name for name in formats if name not in FORMATS]:
        print(f'analysis.tables: --format: "{unknown[0]}" is not one of {", ".join(FORMATS)}', file=sys.stderr)
        return 2
    try:
        storage = Storage(options.results)
        names = [options.grid] if options.grid else grid_names(storage)
        if not names:
            raise AnalysisError(f"--results {options.results}: holds no grid; run one: python -m tuner.run --grid demo")
        shown = [_table(storage, name, options.variant, formats, options.out) for name in names]
    except (AnalysisError, RecordError, StorageError) as error:
        print(f"analysis.tables: {error}", file=sys.stderr)
        return 2
    return 0 if any(shown) else 2


def _table(storage: Storage, name: str, variant: str | None, formats: list[str], out: Path) -> bool:
    results = load_results(storage, name, variant)
    frame = results_frame(results)
    console = Console() if sys.stdout.isatty() else Console(width=180)
    show(frame, console)
    folder = out / (name if results.variant == "full" else f"{name}-{results.variant}")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for kind in formats:
        path = folder / f"T1.{kind}"
        path.write_text(RENDERERS[kind](frame), encoding="utf-8")
        written.append(str(path))
    console.print(f"  written: {'  '.join(written)}", highlight=False, soft_wrap=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
