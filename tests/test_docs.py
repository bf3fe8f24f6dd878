"""What the documents show works as they show it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from models.task import find_task
from pipelines.federated.checkpoints import latest
from pipelines.settings import Settings

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
MOST_LINES = 60


@pytest.fixture
def module() -> str:
    """The source of the task in docs/your-own-task.md."""
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "your-own-task.md").read_text(), re.M | re.S)
    assert len(blocks) == 1
    return str(blocks[0])


def test_a_complete_task_is_short(module: str) -> None:
    assert len(module.splitlines()) < MOST_LINES


def test_the_task_in_the_document_is_found_and_has_what_it_promises(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "parts_of_docs.py").write_text(module)
    monkeypatch.syspath_prepend(str(tmp_path))
    task = find_task("parts_of_docs:TASK")
    data = task.load()
    pools = (data.development, data.evaluation, data.live, data.probe)
    assert all(set(rows.labels) == set(range(len(task.classes))) for rows in pools)
    images = [image.tobytes() for rows in pools for image in rows.images]  # type: ignore[union-attr]
    assert len(set(images)) == len(images)


def test_the_task_in_the_document_ingests_labels_and_trains(module: str, tmp_path: Path, settings: Settings) -> None:
    """`fedloop train parts:TASK` as the document says, with the module's folder on PYTHONPATH."""
    (tmp_path / "parts.py").write_text(module)
    said = subprocess.run(
        [sys.executable, "-m", "flows.cli", "train", "parts:TASK"],
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]),
            "FEDLOOP_HOME": str(settings.home),
            "FEDLOOP_TRAINING__ROUNDS": "2",
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert said.returncode == 0, said.stdout + said.stderr
    found = re.search(r"weights of run (\w+) after 2 rounds", said.stdout)
    assert found, said.stdout
    state = latest(settings.home / "live" / "parts" / "states" / found[1])
    assert state is not None
    assert [record.reports for record in state.log] == [5, 5]
    bought = re.search(r"label\W+(\d+) of (\d+) rows bought", said.stdout)
    assert bought, said.stdout
    assert 0 < int(bought[1]) <= 0.1 * int(bought[2])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_what_a_document_points_to_is_there(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name} points to {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_in_a_document_exists(document: Path) -> None:
    from typer.main import get_command

    from flows.cli import app

    text = document.read_text()
    verbs = set(get_command(app).commands)  # type: ignore[attr-defined]
    goals = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"(?:`|\$ )fedloop ([a-z][a-z-]*)", text)) - verbs == set()
    assert set(re.findall(r"(?:`|\$ )make ([a-z-]+)", text)) - goals == set()
