from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest

from monitoring.calibration import Calibration
from monitoring.dashboard import Dashboard, Figure, figures_of, repair
from monitoring.drift import COLUMNS, OVERALL, DriftPolicy, ScopeDrift, clean, compare, report
from monitoring.panels import FIGURE, HISTOGRAMS, MOST_SITES, Standing, panels_of

CLASSES = ["0", "1"]
SITES = ["site-1", "site-2"]
WELL = Standing("Healthy since Monday", "All is well.")


@pytest.fixture
def board(tmp_path: Path) -> Dashboard:
    made = Dashboard(tmp_path / "evidently", "digits")
    made.ensure("digits, window by window", SITES, CLASSES, WELL)
    return made


@pytest.fixture(scope="module")
def window() -> tuple[ScopeDrift, Any]:
    def frame(seed: int) -> pd.DataFrame:
        rng = np.random.default_rng(seed)
        values = {name: rng.normal(0.3, 0.05, 150) for name in COLUMNS[:6]}
        return clean(pd.DataFrame(values | {"confidence": rng.beta(8, 1, 150), "prediction": rng.integers(0, 2, 150)}))

    here, there = frame(1), frame(2)
    drift = compare(OVERALL, here, there, 150, Calibration({}), DriftPolicy())
    return drift, report(drift, here, there, at=1_700_000_000.0)


def series(board: Dashboard, **labels: str) -> list[list[float | None]]:
    """What Evidently's own data layer, which the UI asks, draws for our figure."""
    from evidently.ui.service.base import SeriesFilter
    from evidently.ui.service.storage.local.base import InMemoryDataStorage

    wanted = SeriesFilter(tags=["digits", OVERALL], metadata={}, metric=FIGURE, metric_labels=labels)
    storage = InMemoryDataStorage(str(board.workspace))
    found = asyncio.run(storage.get_data_series(board.project, [wanted], None, None))
    return [each.values for each in found.series]


def test_a_stripped_snapshot_is_small_and_still_draws_every_series_and_test(board: Dashboard, window: Any) -> None:
    drift, made = window
    for number in range(3):
        path = board.write(1 + 250 * number, OVERALL, 1.7e9 + number, figures_of(drift, {"0": 0.4}), report=made)
    full = board.write(751, OVERALL, 1.7e9 + 3, figures_of(drift, {"0": 0.4}), report=made, full=True)
    assert path.stat().st_size < 40_000 < full.stat().st_size
    for column in drift.columns:
        assert series(board, figure="drift", of=column.column) == [[pytest.approx(column.ratio)] * 4]
    assert series(board, figure="predicted share", of="0") == [[0.4] * 4]
    kept = json.loads(path.read_text())
    assert len([r for r in kept["metric_results"].values() if r["tests"]]) == len(COLUMNS)
    assert kept["tests_widgets"]


def test_evidentlys_own_workspace_reads_what_was_written(board: Dashboard, window: Any) -> None:
    from evidently.ui.workspace import Workspace

    board.write(1, OVERALL, 1.7e9, figures_of(*_drift_and_shares(window)), report=window[1])
    workspace = Workspace(str(board.workspace))
    (project,) = workspace.list_projects()
    assert project.name == "digits"
    panels = project.dashboard.model().panels
    assert panels[0].title == WELL.headline
    assert all(value.tags for panel in panels for value in panel.values)  # so that no panel mixes what is not one
    (run,) = workspace.list_runs(project.id)
    assert workspace.get_run(project.id, run).metadata == {}


def _drift_and_shares(window: Any) -> tuple[ScopeDrift, dict[str, float]]:
    return window[0], {"0": 0.4, "1": 0.6}


def test_a_window_that_is_written_twice_appears_once(board: Dashboard, window: Any) -> None:
    for value in (1.0, 2.0):
        board.write(1, OVERALL, 1.7e9, [Figure("rows", OVERALL, value)], report=window[1])
    assert series(board, figure="rows", of=OVERALL) == [[2.0]]
    board.write(251, "site-1", 1.7e9, [Figure("rows", "site-1", 9.0)])
    assert series(board, figure="rows", of=OVERALL) == [[2.0]]


def test_only_the_newest_windows_and_plots_are_kept(board: Dashboard, window: Any) -> None:
    for number in range(5):
        board.write(1 + 250 * number, OVERALL, 1.7e9 + number, [], report=window[1], full=True)
        board.write(1 + 250 * number, "site-1", 1.7e9 + number, [])
    board.retain(windows=3, full=1)
    sizes = [path.stat().st_size > 100_000 for path in sorted(board.snapshots.glob("*.json"))]
    assert sizes.count(True) == 1
    assert len(sizes) == 6
    assert board.retain(windows=3, full=1) == 0
    board.clear()
    assert not list(board.snapshots.glob("*.json"))


def test_the_panels_are_written_once(board: Dashboard) -> None:
    path = board.snapshots.parent / "dashboard.json"
    before = path.stat().st_mtime_ns
    board.ensure("digits, window by window", SITES, CLASSES, WELL)
    assert path.stat().st_mtime_ns == before
    path.write_text("{")
    board.ensure("digits, window by window", SITES, CLASSES, WELL)
    assert json.loads(path.read_text())["panels"]


def test_how_things_stand_is_on_top_and_follows_what_is_known(board: Dashboard) -> None:
    path = board.snapshots.parent / "dashboard.json"
    before = json.loads(path.read_text())["panels"]
    ill = Standing("Not as expected since Tuesday", "Dark.", (("Tue 08:00", "decision 1: dark"),), histograms=True)
    board.ensure("digits, window by window", SITES, CLASSES, ill)
    panels = json.loads(path.read_text())["panels"]
    assert [(panel["title"], panel["subtitle"]) for panel in panels[:2]] == [(ill.headline, "Dark."), ill.cards[0]]
    assert "Drift from federated histograms" in [panel["title"] for panel in panels]
    board.ensure("digits, window by window", SITES, CLASSES, WELL)
    assert json.loads(path.read_text())["panels"] == before


@pytest.mark.parametrize("count", [1, 5, 40])
def test_no_panel_of_lines_has_more_of_them_than_the_ui_has_colours(count: int) -> None:
    sites = [f"site-{number}" for number in range(count)]
    panels = panels_of("digits", sites, CLASSES, Standing("", "", histograms=True))["panels"]
    lines = [panel["values"] for panel in panels if panel["plot_params"]["plot_type"] == "line"]
    assert max(len(values) for values in lines) <= 6
    assert max(len(values) for values in lines) == 6 or count < MOST_SITES
    assert any("of 40" in (panel["subtitle"] or "") for panel in panels) == (count == 40)


def test_the_page_that_says_how_things_stand_is_one_and_outlives_old_windows(board: Dashboard, window: Any) -> None:
    for number in range(3):
        board.tell(1.7e9 + number, f"# Window {number}\n[a run](http://127.0.0.1:4200/runs)")
        board.write(1 + 250 * number, OVERALL, 1.7e9 + number, [Figure("rows", OVERALL, 1.0)])
        board.write(1 + number, HISTOGRAMS, 1.7e9 + number, [Figure("histogram rows", OVERALL, 1.0)])
    board.retain(windows=2, full=1)
    names = sorted(json.loads(path.read_text())["name"] for path in board.snapshots.glob("*.json"))
    assert names == [
        *("histograms, rows from 2", "histograms, rows from 3", "how things stand"),
        *("overall, rows from 251", "overall, rows from 501"),
    ]
    assert series(board, figure="rows", of=OVERALL) == [[1.0, 1.0]]
    (told,) = [text for path in board.snapshots.glob("*.json") if "Window 2" in (text := path.read_text())]
    assert "[a run](http://127.0.0.1:4200/runs)" in told


def test_what_was_written_with_a_snapshot_can_be_asked(board: Dashboard) -> None:
    board.write(1, "performance", 1.7e9, [], metadata={"labels": "12"})
    assert board.metadata(1, "performance") == {"labels": "12"}
    assert board.metadata(251, "performance") == {}


def test_repair_moves_broken_files_aside_and_touches_no_other(board: Dashboard, window: Any) -> None:
    whole = board.write(1, OVERALL, 1.7e9, [], report=window[1])
    torn = board.write(251, OVERALL, 1.7e9, [], report=window[1])
    torn.write_text(torn.read_text()[:999])
    (board.snapshots / f"{uuid.uuid4()}.json").write_text('{"valid": "but no snapshot"}')
    moved = repair(board.workspace)
    assert len(moved) == 2
    assert all(path.exists() and path.suffix == ".broken" for path in moved)
    assert [path.name for path in board.snapshots.glob("*.json")] == [whole.name]
    assert repair(board.workspace) == []


@contextmanager
def ui(workspace: Path) -> Iterator[str]:
    """The real `evidently ui`."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("evidently")), "ui", "--workspace", str(workspace)]
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        env=os.environ | {"DO_NOT_TRACK": "true"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def until(url: str, accept: Any, patience_s: float = 90.0) -> httpx.Response:
    deadline = time.monotonic() + patience_s
    while True:
        try:
            answer = httpx.get(url, timeout=10)
            if accept(answer):
                return answer
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline, f"{url} did not answer as it should"
        time.sleep(0.3)


@pytest.mark.house
def test_the_real_ui_answers_after_a_repair_and_sees_new_windows_while_it_runs(board: Dashboard, window: Any) -> None:
    board.write(1, OVERALL, 1.7e9, [], report=window[1])
    torn = board.write(251, OVERALL, 1.7e9, [], report=window[1])
    torn.write_text(torn.read_text()[:999])
    repair(board.workspace)
    with ui(board.workspace) as address:
        projects = until(f"{address}/api/projects", lambda answer: answer.status_code == 200).json()
        assert [project["name"] for project in projects] == ["digits"]
        reports = f"{address}/api/projects/{board.project}/reports"
        assert len(until(reports, lambda answer: answer.status_code == 200).json()) == 1
        board.write(501, OVERALL, 1.7e9 + 1, [], report=window[1])
        until(reports, lambda answer: len(answer.json()) == 2, 20)
        board.write(501, OVERALL, 1.7e9 + 1, [], report=window[1])
        other = Dashboard(board.workspace, "retina")
        other.ensure("retina", ["site-1"], ["no", "yes"], WELL)
        other.write(1, OVERALL, 1.7e9, [], report=window[1])
        until(f"{address}/api/projects", lambda answer: len(answer.json()) == 2, 20)
        until(f"{address}/api/projects/{other.project}/reports", lambda answer: len(answer.json()) == 1, 20)
        assert len(httpx.get(reports).json()) == 2
