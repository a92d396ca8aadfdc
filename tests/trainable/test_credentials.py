"""Secrets of the environment are taken out of what is recorded and shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from toy import exec_spec

from trainable import records
from trainable.attempt import Attempt, RunFailed
from trainable.credentials import redacted
from trainable.spec import RunSpec
from trainable.storage import Storage

NAMES = ["HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "GITHUB_TOKEN", "RAY_AUTH_TOKEN"]
NAMES += ["AZURE_STORAGE_KEY", "MLFLOW_TRACKING_PASSWORD", "DATABASE_PASSWD", "OPENAI_API_KEY"]


@pytest.mark.parametrize("name", NAMES)
def test_values_of_secrets_are_hidden(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "/sentinel/of+a=secret")
    assert redacted("denied: /sentinel/of+a=secret, /sentinel/of+a=secret") == "denied: ***, ***"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:pass@host/x failed", "https://***@host/x failed"),
        ("proxy http://me:p/w@10.0.0.1:3128", "proxy http://***@10.0.0.1:3128"),
        ("s3://KEY:sec/ret@bucket/x", "s3://***@bucket/x"),
        ("https://token@github.com/x.git", "https://***@github.com/x.git"),
        ("http://127.0.0.1:8265 and mail@example.org", "http://127.0.0.1:8265 and mail@example.org"),
    ],
)
def test_what_stands_before_the_at_is_hidden(text: str, shown: str) -> None:
    assert redacted(text) == shown


def test_words_and_places_are_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/token")
    assert redacted("a test of /var/run/token") == "a test of /var/run/token"


def test_a_failure_is_recorded_without_them(
    storage: Storage, data_path: Path, toy_spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library's error may repeat a key or an address with a password: its text goes into two files and on the screen."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "sentinel-of-a-key")

    def fail(*_: Any) -> Any:
        raise OSError("signature of sentinel-of-a-key is wrong at https://me:sentinel-of-a-password@host/x \x1b[2J")

    monkeypatch.setattr("trainable.attempt.open_run", fail)
    with pytest.raises(RunFailed, match=r"signature of \*\*\* is wrong at https://\*\*\*@host/x") as raised:
        Attempt(toy_spec, exec_spec(data_path), storage)
    (record,) = records.read_attempts(storage)
    log = storage.read(f"runs/{toy_spec.run_id}/log.txt").decode()
    assert "Traceback" in log and r"\x1b[2J" in log and "\x1b" not in log
    for text in (str(raised.value), str(record.error), log):
        assert "signature of ***" in text and "sentinel" not in text
