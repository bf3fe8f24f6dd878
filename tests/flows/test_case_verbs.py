"""`fedloop cases`: what is added, listed, taken back, and overridden, from the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from flows.cli import app
from models.images import encode_png
from pipelines import registry, release
from pipelines.settings import Settings

Fedloop = Callable[..., Result]


@pytest.fixture
def fedloop(settings: Settings) -> Fedloop:
    own = {"FEDLOOP_HOME": str(settings.home), "FEDLOOP_OUT": str(settings.out), "COLUMNS": "200"}
    return lambda *arguments: CliRunner().invoke(app, list(arguments), env=own)


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        image = np.random.default_rng(number).integers(0, 256, size=(8, 8, 1), dtype=np.uint8)
        path.write_bytes(encode_png(image))
    return paths


def test_cases_are_added_listed_imported_and_withdrawn(fedloop: Fedloop, pictures: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    said = fedloop("cases", "add", str(pictures[0]), str(broken), "--expected", "7", "--by", "[Ana]", "--note", "[/x]")
    assert said.exit_code == 2
    assert "is new" in said.stdout
    assert f"line 2, {broken}: the bytes are no PNG" in said.stderr
    (tmp_path / "many.csv").write_text("file,expected\n1.png,3\n0.png,8\nnone.png,1\n")
    said = fedloop("cases", "import", str(tmp_path / "many.csv"))
    assert said.exit_code == 2
    assert "0.png: until now '7' was expected of this picture (version 1, by [Ana]); from now on '8'" in said.stdout
    assert "line 4, none.png: " in said.stderr
    listed = fedloop("cases", "list")
    assert listed.exit_code == 0, listed.output
    assert "no model serves" in listed.stdout
    name = next(word for word in said.stdout.split() if len(word) == 12)
    assert name in listed.stdout
    assert "is withdrawn" in fedloop("cases", "withdraw", name, "--reason", "wrong").stdout
    assert name in fedloop("cases", "list", "--state", "withdrawn").stdout
    assert name not in fedloop("cases", "list", "--state", "unasked").stdout


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["withdraw", "abc", "--reason", "x"], "no case 'abc'"),
        (["import", "nowhere"], "nothing at nowhere"),
        (["list", "--state", "lost"], "lost"),
        (["list", "--task", "nosuch"], "no task 'nosuch'"),
    ],
)
def test_what_a_user_can_fix_is_a_sentence_and_exit_code_2(
    arguments: list[str], fragment: str, fedloop: Fedloop
) -> None:
    said = fedloop("cases", *arguments)
    assert said.exit_code == 2, said.output
    assert fragment in said.stderr
    assert "Traceback" not in said.stderr


def test_a_lost_case_refuses_a_promotion_until_somebody_answers_for_it(
    fedloop: Fedloop, settings: Settings, register: Callable[..., registry.Version], pictures: list[Path]
) -> None:
    from models.images import decode_png
    from pipelines.serving_model import load_version

    classes, images = settings.task.classes, [decode_png(path.read_bytes(), settings.task.input) for path in pictures]
    first, seed = register(1), 2
    release.promote(settings, first.number, "first")
    old = load_version(settings, first).predict(np.stack(images)).argmax(1)
    while (register_other := load_version(settings, register(seed))).predict(np.stack(images)).argmax(1)[0] == old[0]:
        seed += 1
    number = register_other.version.number
    registry.tag(settings, number, {"fedloop.gate_passed": "true"})
    assert fedloop("cases", "add", str(pictures[0]), "--expected", classes[old[0]]).exit_code == 0
    assert "passed" in fedloop("cases", "list").stdout

    said = fedloop("promote", "--version", str(number))
    assert said.exit_code == 2
    assert "1 that the champion passes, this one fails" in said.stderr
    said = fedloop("promote", "--version", str(number), "--override-cases", "Ana Ruiz")
    assert said.exit_code == 2
    assert "a person's name and a reason" in said.stderr
    said = fedloop("promote", "--version", str(number), "--override-cases", "Ana Ruiz", "--reason", "old scanner")
    assert said.exit_code == 0, said.output
    assert release.history(settings)[-1].reason.startswith("cases overridden by Ana Ruiz: old scanner")
    assert "failed" in fedloop("cases", "list").stdout
