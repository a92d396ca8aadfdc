"""YAML read strictly."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tuner.yaml_file import YamlError, as_text, read_yaml


def parsed(tmp_path: Path, text: str) -> object:
    (tmp_path / "f.yaml").write_text(text)
    return read_yaml(tmp_path / "f.yaml")


def test_scalars_are_those_of_yaml_1_2(tmp_path: Path) -> None:
    text = "[1e-3, 1.0e-3, 010, -4, .5, true, null, ~, no, off, 2020-01-01, 1:30, '7']"
    assert parsed(tmp_path, text) == [1e-3, 1e-3, 10, -4, 0.5, True, None, None, "no", "off", "2020-01-01", "1:30", "7"]


def test_keys_are_text(tmp_path: Path) -> None:
    assert parsed(tmp_path, "{true: 1, 2: 3, null: 4}") == {"true": 1, "2": 3, "null": 4}


def test_anchors_and_merges_work(tmp_path: Path) -> None:
    assert parsed(tmp_path, "a: &x {p: 1}\nb: {<<: *x, q: 2}") == {"a": {"p": 1}, "b": {"p": 1, "q": 2}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", r'f\.yaml:2:1: key "a" is there twice'),
        ("a: {b: 1, b: 2}\n", r'f\.yaml:1:11: key "b" is there twice'),
        ("a: [1\n", r"f\.yaml:2:1: expected"),
        ("x: !!python/object:os.system 1\n", r"f\.yaml:1:4: could not determine a constructor"),
        ("? [1, 2]\n: 3\n", r"f\.yaml:1:3: a key must be plain text"),
    ],
)
def test_faults_name_the_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(YamlError, match=message):
        parsed(tmp_path, text)


def test_absent_and_binary_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(YamlError, match=r"none\.yaml: cannot be read"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(YamlError, match=r"b\.yaml: cannot be read"):
        read_yaml(tmp_path / "b.yaml")


def test_values_as_they_are_written() -> None:
    assert [as_text(value) for value in (True, False, None, 5, 0.1, "x")] == ["true", "false", "null", "5", "0.1", "x"]


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
MERGES = "a0: &a0 {k: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, r"f\.yaml:\d+:\d+: unfolds to more than 2,000,000 values through its aliases"),
        (MERGES, r"f\.yaml:\d+:\d+: unfolds to more than 2,000,000 values through its aliases"),
        ("a: &a [*a]\n", r"f\.yaml:1:4: contains itself through its aliases"),
        ("a: " + "[" * 20_000, "is nested too deeply"),
        ("a: " + "{b: " * 20_000, "is nested too deeply"),
        ("a: " + "9" * 5_000, "f.yaml: Exceeds the limit"),
        ("x: !!python/name:os.system {}\n", "could not determine a constructor"),
        ("x: !!python/object/apply:os.mkdir [harm]\n", "could not determine a constructor"),
        ("x: !!python/object/new:os.mkdir [harm]\n", "could not determine a constructor"),
        ("!!python/module:os {}\n", "could not determine a constructor"),
        ("a: \x1b[2J\n", "special characters are not allowed"),
    ],
)
def test_files_that_mean_harm_are_refused_at_once(text: str, message: str, tmp_path: Path) -> None:
    began = time.process_time()
    with pytest.raises(YamlError, match=message):
        parsed(tmp_path, text)
    assert time.process_time() - began < 5 and not Path("harm").exists()
