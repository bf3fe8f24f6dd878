"""`fedloop tokens`: made, listed, revoked, and what goes wrong is a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from monitoring.traffic import TrafficLog
from pipelines import serving_tokens
from pipelines.settings import load_settings


def fedloop(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["tokens", *words])
    return done.exit_code, done.output


def test_a_token_is_told_once_listed_by_name_and_revoked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLOOP_HOME", str(tmp_path))
    assert fedloop("list") == (0, "")
    words = ["--site", "a", "--scope", "predict", "--scope", "feedback", "--rows-per-s", "5", "--rows-per-day", "1000"]
    code, token = fedloop("add", "clinic", *words)
    assert (code, len(token.strip())) == (0, 43)
    settings = load_settings("digits")
    log = TrafficLog.open(settings.database_url, settings.images)
    (kept,) = serving_tokens.valid(log.engine).values()
    assert kept.sha256 == serving_tokens.hash_of(token.strip())
    assert serving_tokens.claim(log.engine, kept, "2026-01-01", 7) == 7
    code, listed = fedloop("list")
    assert listed.strip() == "clinic\ta\tfeedback,predict\t5 rows/s\t0 of 1000 rows claimed today"
    assert token.strip() not in listed
    code, said = fedloop("add", "clinic", "--scope", "predict")
    assert code == 2 and "a token named 'clinic' already" in said
    assert fedloop("revoke", "clinic") == (0, "clinic is revoked\n")
    assert fedloop("list") == (0, "")
    assert fedloop("revoke", "clinic")[0] == 2
    log.close()
