"""The command line: every verb explains itself, and what a user can fix is a sentence, not a stack trace."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from flows.cli import app

VERBS = [
    "run", "up", "down", "status", "ingest", "train", "evaluate", "promote", "rollback", "monitor", "traffic", "report",
]  # fmt: skip


def fedloop(*arguments: str, home: Path, **variables: str) -> Result:
    """The command in this process: what it prints and its exit code are those of the real one."""
    own = {"FEDLOOP_HOME": str(home), "FEDLOOP_OUT": str(home / "out")} | variables
    return CliRunner().invoke(app, list(arguments), env=own)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_says_what_it_does(verb: str, tmp_path: Path) -> None:
    said = fedloop(verb, "--help", home=tmp_path)
    assert said.exit_code == 0
    assert len(said.stdout) > 200


def test_a_verb_that_does_not_exist_is_refused_with_a_hint(tmp_path: Path) -> None:
    said = fedloop("trian", home=tmp_path)
    assert said.exit_code == 2 and "train" in said.stderr


@pytest.mark.parametrize(
    ("arguments", "variables", "fragments"),
    [
        (["train", "nosuch"], {}, ["no task 'nosuch'", "digits, retina, pneumonia", "package.module:TASK"]),
        (["train", "no.such.module:TASK"], {}, ["no", "cannot be imported", "PYTHONPATH"]),
        (["train", "models.images:MAX_PIXELS"], {}, ["MAX_PIXELS is a int", "Task"]),
        (["train", "retina"], {"FEDLOOP_DATA": "/nowhere"}, ["FEDLOOP_DATA", "retinamnist"]),
        (["train"], {"FEDLOOP_TRAINING__ROUNDS": "0"}, ["training.rounds", "greater than or equal to 1"]),
        (["train"], {"FEDLOOP_TRACKING_URI": "http://127.0.0.1:9"}, ["127.0.0.1:9", "does not answer", "make up"]),
        (["promote"], {}, ["no challenger", "fedloop evaluate"]),
        (["rollback"], {}, ["no fallback"]),
        (["report"], {}, ["no rehearsal", "fedloop run"]),
        (["traffic", "--drift", "fog"], {}, ["no drift 'fog'", "low-light"]),
        (["traffic", "--drift", "low-light", "--severity", "total"], {}, ["no severity 'total'", "strong"]),
        (["traffic", "--site", "site-99"], {}, ["no site site-99", "site-1"]),
        (["run", "--severity", "total"], {}, ["no severity 'total'", "strong"]),
    ],
)  # fmt: skip
def test_what_a_user_can_fix_is_one_sentence_and_exit_code_2(
    arguments: list[str], variables: dict[str, str], fragments: list[str], tmp_path: Path
) -> None:
    said = fedloop(*arguments, home=tmp_path, **variables)
    assert said.exit_code == 2, said.stdout + said.stderr
    for fragment in fragments:
        assert fragment in said.stderr
    assert "Traceback" not in said.stderr


def test_a_broken_settings_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "digits.toml").write_text("seed = = 3")
    said = fedloop("train", home=tmp_path, FEDLOOP_CONF=str(tmp_path))
    assert said.exit_code == 2 and "digits.toml" in said.stderr and "TOML" in said.stderr


def test_traffic_without_a_service_says_so_and_loses_nothing(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    said = fedloop("traffic", "--requests", "3", home=tmp_path, FEDLOOP_PORTS__SERVICE=port)
    assert said.exit_code != 0
    assert "Traceback" not in said.stderr
