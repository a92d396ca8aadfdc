"""A bundle is made again to the letter, the same store gives the same bytes, and whatever was done to it is named."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from synthetic import design, noisy, write_grid

import analysis.bundle
import analysis.outputs
import analysis.verify
from analysis import registration as registration_module
from analysis.bundle_file import SCHEMA_VERSION
from analysis.figures import FIGURES
from trainable import records
from trainable.schemas import SCHEMA_VERSION as STORE_SCHEMA_VERSION
from trainable.storage import Storage

Files = dict[str, bytes]
PREDICTIONS = "store/predictions/dataset=red"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """Three rows with two seeds on 60 images of 6 classes; labels that nobody expects; a run that is not ours."""
    storage = Storage(str(tmp_path_factory.mktemp("store")))
    specs = design(rows=3, seeds=2, datasets=("red",))
    names = ['기본, "a"', "=1+1", "x" * 60]
    write_grid(
        storage,
        dict(zip(names, specs.values(), strict=True)),
        images=60,
        classes=6,
        logits=noisy({"none": 0.5, "mixup": 0.52, "cutmix": 0.8}),
    )
    storage.put("runs/0123456789abcdef/checkpoint/last/state.safetensors", b"weights")
    storage.put("trials/stray.parquet", b"of nobody")
    storage.put("looks/made/full--0001.json", b"{}")
    storage.put("looks/other/full--0001.json", b"{}")
    return storage


@pytest.fixture(scope="module")
def bundled(store: Storage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "made.tar"
    attached = tmp_path_factory.mktemp("features")
    (attached / "특징.json").write_text("{}")
    given = ["--grid", "made", "--results", store.uri, "--out", str(path), "--attach", str(attached)]
    assert analysis.bundle.main(given) == 0
    return path


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One figure instead of all."""
    monkeypatch.setattr(analysis.outputs, "FIGURES", [kind for kind in FIGURES if kind.id == "F1"])


def unpacked(path: Path) -> Files:
    with tarfile.open(path) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]


def packed(path: Path, files: Files) -> Path:
    """As `analysis.bundle` would have packed them."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in files.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return path


def relisted(files: Files) -> Files:
    """With a list that says what the members are now: whoever tampers can do that too."""
    index = json.loads(files["bundle.json"])
    index["members"] = [
        {"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in files.items()
        if name != "bundle.json"
    ]
    return {**files, "bundle.json": json.dumps(index).encode()}


def verified(path: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, list[str]]:
    """Exit code, and the lines that say what is wrong."""
    code = analysis.verify.main([str(path), *more])
    said = capsys.readouterr()
    lines = [line for line in said.out.splitlines() if line.startswith("DIFFERS")] + said.err.splitlines()
    return code, lines


def test_a_bundle_is_the_same_when_made_again(
    bundled: Path, store: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert analysis.verify.main([str(bundled), "--out", str(tmp_path / "again")]) == 0
    shown = capsys.readouterr().out
    digest = hashlib.sha256(unpacked(bundled)["bundle.json"]).hexdigest()
    assert f"digest {digest}" in shown and "SAME     every rule holds" in shown
    assert "6 runs" in shown and "without T7: the grid has no published values" in shown
    assert "attached: 1 file, known by their hashes and not recomputed" in shown
    files = unpacked(bundled)
    for name, content in files.items():
        if name.startswith("outputs/"):
            assert (tmp_path / "again" / name.removeprefix("outputs/")).read_bytes() == content
    assert {"outputs/T1.csv", "outputs/T2.tex", "outputs/F1.csv", "attached/특징.json", "preregistration.toml"} <= set(
        files
    )
    assert not any("stray" in name or "/runs/" in name for name in files), "what no commit names stays behind"
    assert len([name for name in files if name.startswith("store/commits/")]) == 6


def test_the_tables_are_those_of_the_store(bundled: Path, store: Storage, tmp_path: Path) -> None:
    import analysis.tables

    assert analysis.tables.main(["--results", store.uri, "--out", str(tmp_path)]) == 0
    files = unpacked(bundled)
    for path in (tmp_path / "made").iterdir():
        assert files[f"outputs/{path.name}"] == path.read_bytes(), path.name


@pytest.mark.usefixtures("quick")
def test_it_holds_the_grids_own_looks(bundled: Path) -> None:
    assert [name for name in unpacked(bundled) if "looks/" in name] == ["store/looks/made/full--0001.json"]


def test_the_same_store_gives_the_same_bytes(store: Storage, tmp_path: Path) -> None:
    """Also of a copy elsewhere, with other times."""
    shutil.copytree(store.uri, tmp_path / "copy")
    for name, uri in (("one", store.uri), ("two", str(tmp_path / "copy"))):
        assert analysis.bundle.main(["--grid", "made", "--results", uri, "--out", str(tmp_path / name)]) == 0
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "one", "two"], "nothing half-made is left"


@pytest.mark.usefixtures("quick")
def test_a_bucket_gives_the_same_bytes_as_a_folder(store: Storage, s3_uri: str, tmp_path: Path) -> None:
    bucket = Storage(s3_uri.format(name="bundle"))
    root = Path(store.uri)
    for path in sorted(root.rglob("*")):
        if path.is_file():
            bucket.put(path.relative_to(root).as_posix(), path.read_bytes())
    for name, uri in (("one", store.uri), ("two", bucket.uri)):
        assert analysis.bundle.main(["--grid", "made", "--results", uri, "--out", str(tmp_path / name)]) == 0
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def cut_predictions(files: Files) -> str:
    return next(name for name in files if name.startswith(PREDICTIONS))


def changed(content: bytes) -> bytes:
    return content[:200] + bytes([content[200] ^ 1]) + content[201:]


def index_with(files: Files, **values: Any) -> Files:
    return {**files, "bundle.json": json.dumps({**json.loads(files["bundle.json"]), **values}).encode()}


def without(files: Files, name: str) -> Files:
    return {key: content for key, content in files.items() if key != name}


BROKEN: dict[str, tuple[Callable[[Files], Files], str]] = {
    "a tampered parquet": (
        lambda files: {**files, cut_predictions(files): changed(files[cut_predictions(files)])},
        r"{predictions}: its content is not what was bundled \(SHA-256 differs\)",
    ),
    "a tampered table": (
        lambda files: {**files, "outputs/T1.csv": changed(files["outputs/T1.csv"])},
        r"outputs/T1.csv: its content is not what was bundled",
    ),
    "a table of another size": (
        lambda files: {**files, "outputs/T1.csv": b""},
        r"outputs/T1.csv has 0 bytes, bundle.json says [\d,]+",
    ),
    "a missing member": (
        lambda files: without(files, cut_predictions(files)),
        r"{predictions} is listed in bundle.json and missing",
    ),
    "an added member": (
        lambda files: {**files, "store/commits/x.json": b"{}"},
        r"'store/commits/x.json' is not listed in bundle.json: it was added",
    ),
    "a newer bundle": (
        lambda files: index_with(files, schema_version=SCHEMA_VERSION + 1),
        r"bundle.json was written with schema version 2, this version reads up to 1; update this project",
    ),
    "a newer store": (
        lambda files: index_with(files, store_schema_version=STORE_SCHEMA_VERSION + 1),
        f"bundle.json was written with store schema version {STORE_SCHEMA_VERSION + 1}, this version reads up to "
        f"{STORE_SCHEMA_VERSION}; update this project",
    ),
    "another kind": (lambda files: index_with(files, kind="x"), r"bundle.json is not the list of a bundle \(kind\)"),
    "a list that is none": (
        lambda files: {**files, "bundle.json": b"[" * 200_000},
        r"bundle.json is not the list of a bundle \(its text\)",
    ),
    "another first member": (
        lambda files: {"outputs/T1.csv": b"", **files},
        r"does not begin with bundle.json: not a bundle of this project",
    ),
    "a member listed twice": (
        lambda files: index_with(files, members=2 * json.loads(files["bundle.json"])["members"]),
        r"bundle.json lists \d+ members, some of them twice",
    ),
    "a terabyte": (
        lambda files: index_with(files, members=[{"name": "store/a", "bytes": 1 << 50, "sha256": "0" * 64}]),
        r"its members have 1,125,899,906,842,624 bytes, .* free; make room",
    ),
    "nothing": (lambda files: {}, r"does not begin with bundle.json"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_not_as_it_was_bundled_is_named(
    name: str, bundled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, message = BROKEN[name]
    files = unpacked(bundled)
    message = message.replace("{predictions}", re.escape(cut_predictions(files)))
    code, lines = verified(packed(tmp_path / "x.tar", change(files)), capsys)
    assert code == 2 and len(lines) == 1 and re.search(message, lines[0]), lines


ESCAPES = [
    "/etc/x",
    "../x",
    "store/../../x",
    "store//x",
    "store/./x",
    "store\\..\\x",
    "C:/x",
    "x",
    "store/a\nb",
    "store",
]


@pytest.mark.parametrize("name", ESCAPES)
def test_no_member_can_leave_its_folder(
    name: str, bundled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    code, lines = verified(packed(tmp_path / "x.tar", relisted({**unpacked(bundled), name: b"x"})), capsys)
    assert code == 2 and len(lines) == 1 and "is not the name of a member" in lines[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["temporary", "x.tar"]


@pytest.mark.parametrize(
    "kind",
    [
        *(tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE),
        *(tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_SPARSE),
    ],
)
def test_nothing_but_plain_files_is_opened(
    kind: bytes, bundled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header = tarfile.TarInfo("store/link")
    header.type, header.linkname = kind, "/etc/passwd"
    content = packed(tmp_path / "x.tar", unpacked(bundled)).read_bytes().rstrip(b"\0")
    content += bytes(-len(content) % 512) + header.tobuf(tarfile.USTAR_FORMAT) + bytes(1024)
    (tmp_path / "x.tar").write_bytes(content)
    code, lines = verified(tmp_path / "x.tar", capsys)
    assert code == 2 and "'store/link' is a link, a device, a folder or no plain file" in lines[0]


def test_a_member_that_stands_twice(bundled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed(tmp_path / "x.tar", unpacked(bundled))
    with tarfile.open(tmp_path / "x.tar", "a") as archive:
        archive.addfile(tarfile.TarInfo("preregistration.toml"), io.BytesIO())
    code, lines = verified(tmp_path / "x.tar", capsys)
    assert code == 2 and "preregistration.toml stands in it twice" in lines[0]


def test_a_truncated_archive(bundled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = bundled.read_bytes()
    with tarfile.open(bundled) as archive:
        last = archive.getmembers()[-1]
    said = set()
    for length in (0, 100, 600, len(content) // 2, last.offset_data, last.offset_data + 1, len(content) - 512):
        (tmp_path / "x.tar").write_bytes(content[:length])
        code, lines = verified(tmp_path / "x.tar", capsys)
        assert code == 2 and len(lines) == 1, (length, lines)
        assert re.search("ends within|missing|cut off|cannot be read as a bundle|does not begin", lines[0]), lines
        said.add(lines[0])
    assert any(f"ends within {last.name}: truncated" in line for line in said)
    assert any("cut off or added to" in line for line in said)
    code, lines = verified(tmp_path / "none.tar", capsys)
    assert code == 2 and "none.tar: cannot be read as a bundle (No such file or directory)" in lines[0]


def test_bytes_after_the_end_are_seen(bundled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.tar").write_bytes(bundled.read_bytes() + bytes(10_240))
    code, lines = verified(tmp_path / "x.tar", capsys)
    assert code == 2 and "cut off or added to" in lines[0]


# --- whoever tampers may write a list that fits


@pytest.mark.usefixtures("quick")
def test_a_number_of_a_table_that_does_not_follow_is_named(
    bundled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = unpacked(bundled)
    for name in [name for name in files if name.startswith("outputs/F") and name != "outputs/F1.csv"]:
        del files[name]
    index = json.loads(files["bundle.json"])
    index["outputs"] = {name: why for name, why in index["outputs"].items() if name[0] == "T" or name == "F1"}
    files["bundle.json"] = json.dumps(index).encode()
    assert verified(packed(tmp_path / "same.tar", relisted(files)), capsys) == (0, [])

    table, text = files["outputs/T1.csv"].decode(), files["outputs/T2.md"].decode()
    header, first, *_ = table.splitlines()
    old = dict(zip(header.split(","), re.sub('"[^"]*,[^"]*"+,', "label,", first).split(","), strict=False))[
        "final_top1"
    ]
    larger = repr(float(old) + 0.01)
    assert table.count(old) >= 1
    files["outputs/T1.csv"] = table.replace(old, larger, 1).encode()
    files["outputs/T2.md"] = (
        text.replace("60", "61", 1).encode() if "60" in text else text.replace("5", "6", 1).encode()
    )
    del files["outputs/T10.html"]
    files["outputs/T99.csv"] = b"a\n1\n"
    code, lines = verified(packed(tmp_path / "x.tar", relisted(files)), capsys)
    assert code == 1
    assert any(re.search(rf"T1.csv, row 1 .*, column \w+: {larger}; recomputed {old}", line) for line in lines), lines
    assert any("DIFFERS  T10.html: is not in the bundle, and is made of its store" in line for line in lines)
    assert any("DIFFERS  T99.csv: is in the bundle, and cannot be made again" in line for line in lines)
    assert any(re.search(r"T2.md, line \d+.*: .*; recomputed ", line) for line in lines) and len(lines) == 4


@pytest.mark.usefixtures("quick")
def test_a_parquet_that_the_list_says_is_fine_is_still_not_what_was_committed(
    bundled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = unpacked(bundled)
    name = cut_predictions(files)
    code, lines = verified(packed(tmp_path / "x.tar", relisted({**files, name: changed(files[name])})), capsys)
    assert code == 1 and len(lines) == 1
    assert "rule files is broken" in lines[0] and f"{name}: its content is not what was committed" in lines[0]


@pytest.mark.usefixtures("quick")
def test_a_store_that_was_changed_in_every_place_gives_other_tables(
    store: Storage, bundled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A whole other run, committed as it should be, under the tables of the first."""
    shutil.copytree(store.uri, tmp_path / "store")
    other = Storage(str(tmp_path / "store"))
    for name in other.names("commits"):
        other.delete(f"commits/{name}")
    for folder in ("trials", "epochs", "provenance", "predictions/dataset=red", "logits/dataset=red"):
        for name in other.names(folder):
            other.delete(f"{folder}/{name}")
    from synthetic import tables_of, write_run

    for spec in [spec for runs in design(rows=3, seeds=2, datasets=("red",)).values() for spec in runs]:
        for name in other.names("attempts"):
            if name.startswith(spec.run_id):
                other.delete(f"attempts/{name}")
        write_run(other, spec, tables_of(spec, images=60, classes=6, logits=noisy(0.9)))
    assert analysis.bundle.main(["--grid", "made", "--results", other.uri, "--out", str(tmp_path / "other.tar")]) == 0
    capsys.readouterr()
    files, theirs = unpacked(bundled), unpacked(tmp_path / "other.tar")
    mixed = {name: content for name, content in theirs.items() if not name.startswith("outputs/")}
    mixed |= {name: content for name, content in files.items() if re.match(r"outputs/(T\d+|F1)\.", name)}
    code, lines = verified(packed(tmp_path / "x.tar", relisted(mixed)), capsys)
    assert code == 1 and len(lines) == analysis.verify.SHOWN + 1
    assert re.search(r"T1\.csv, row 1 \(.*\), column best_on_test_top1: 0\.\d+; recomputed 0\.\d+", lines[0]) or any(
        re.search(r"column final_top1", line) for line in lines
    )


@pytest.mark.usefixtures("quick")
def test_its_own_preregistration_is_in_force(
    store: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine with another one verifies under the one that the bundle was made with: every table names it."""
    path = tmp_path / "made.tar"
    assert analysis.bundle.main(["--grid", "made", "--results", store.uri, "--out", str(path)]) == 0
    capsys.readouterr()
    here = registration_module.FILE.read_text().replace("margin = 0.03", "margin = 0.001")
    assert here != registration_module.FILE.read_text()
    (tmp_path / "here.toml").write_text(here)
    monkeypatch.setattr(analysis.verify, "FILE", tmp_path / "here.toml")
    with registration_module.in_force(tmp_path / "here.toml"):
        assert analysis.verify.main([str(path)]) == 0
        said = capsys.readouterr().out
        assert re.search(r"its preregistration \w{12} is not the one here, \w{12}; its own was used", said)
        files = {**unpacked(path), "preregistration.toml": here.encode()}
        code, lines = verified(packed(tmp_path / "x.tar", relisted(files)), capsys)
        assert code == 1 and "T1.html, line" in lines[0], "under another one the tables say so"
    broken = {**unpacked(path), "preregistration.toml": b"history = 1\n"}
    code, lines = verified(packed(tmp_path / "x.tar", relisted(broken)), capsys)
    assert code == 2 and "preregistration.toml: " in lines[0]


@pytest.mark.usefixtures("quick")
def test_a_faulty_store_is_not_bundled(store: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(store.uri, tmp_path / "store")
    copy = Storage(str(tmp_path / "store"))
    commit = next(iter(records.read_commits(copy).values()))
    content = copy.read(commit.file("logits").path)
    copy.put(commit.file("logits").path, changed(content))
    given = ["--grid", "made", "--results", copy.uri, "--out", str(tmp_path / "x.tar")]
    assert analysis.bundle.main(given) == 1
    said = capsys.readouterr().err
    assert "rule files is broken: " in said and f"{copy.uri}/{commit.file('logits').path}: its content is not" in said
    assert "nothing was bundled. All faults: python -m analysis.check --grid made" in said
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    copy.delete(commit.file("logits").path)
    assert analysis.bundle.main(given) == 0, "a commit that does not count is left out"
    assert "grid made (full): 5 runs" in capsys.readouterr().out
    assert verified(tmp_path / "x.tar", capsys) == (0, [])


def test_what_cannot_be_bundled_says_why(store: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "with link").mkdir()
    (tmp_path / "with link" / "x").symlink_to("/etc/passwd")
    given = ["--grid", "made", "--results", store.uri, "--out", str(tmp_path / "x.tar")]
    for more, message in (
        (["--grid", "other"], "has no such grid; it has made"),
        (["--attach", str(tmp_path / "none")], "none: no folder"),
        (["--attach", str(tmp_path / "with link")], "a link, a pipe or a device; a bundle holds plain files alone"),
    ):
        assert analysis.bundle.main([*given, *more]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "x.tar").exists()


def test_last_digits_may_differ_and_no_more() -> None:
    def differ(one: str, other: str) -> bool:
        return bool(
            list(
                analysis.outputs.differences(
                    {"T.csv": f"a,b\n{one},x\n".encode()}, {"T.csv": f"a,b\n{other},x\n".encode()}
                )
            )
        )

    assert (
        not differ("0.51", "0.5100000000000001")
        and not differ("1e-17", "0.0")
        and not differ("123456.7", "123456.70001")
    )
    assert differ("0.51", "0.5101") and differ("5", "6") and differ("1000000000", "1000000001")
    assert differ("", "0.5") and differ("nan", "0.5") and differ("0.5", "inf") and differ("x", "y")
    assert differ("1234567890123456", "1234567890123457"), "a run's id is no number"
    (line,) = analysis.outputs.differences({"T.md": b"a\nb 1\nc"}, {"T.md": b"a\nb 2\nc"})
    assert line == "T.md, line 2: b 1; recomputed b 2"
