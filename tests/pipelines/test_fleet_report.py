"""A fleet's pictures: drawn from what a log keeps, and honest about who never trains."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models.errors import Missing
from pipelines.federated.buffered import Buffering, gather_buffered
from pipelines.federated.clock import Clock
from pipelines.federated.cohort import KEYBOARD_COHORT
from pipelines.federated.fleet import Fleet
from pipelines.federated.gathering import gather
from pipelines.federated.sessions import SessionCost
from pipelines.fleet_report import fairness, plot_fleet

FLEET = Fleet(50_000)
COHORT = replace(KEYBOARD_COHORT, goal=100)
COST = SessionCost(1e6, 1e6)


def counts(ids: np.ndarray) -> np.ndarray:
    return np.full(len(ids), 50)


def logged(rounds: int, asynchronous: bool = False) -> list[dict[str, Any]]:
    """Records as they come out of a log in JSON."""
    clock, records = Clock(), []
    for number in range(1, rounds + 1):
        if asynchronous:
            gathering, clock = gather_buffered(FLEET, COHORT, Buffering(150), counts, COST, 0, number, clock)
        else:
            gathering, clock = gather(FLEET, COHORT, counts, COST, 0, number, clock)
        records.append(json.loads(json.dumps(gathering.figures())))
    return records


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("rounds", [1, 60])
def test_a_log_gives_a_picture_with_something_on_it(rounds: int, asynchronous: bool, tmp_path: Path) -> None:
    path = plot_fleet(logged(rounds, asynchronous), FLEET, tmp_path / "made" / "fleet.png")
    with Image.open(path) as picture:
        assert picture.size == (1300, 950)
        assert np.asarray(picture.convert("L")).std() > 20


def test_a_round_s_record_is_small_enough_to_keep_thousands() -> None:
    assert len(json.dumps(logged(3)[-1])) < 1000


def test_who_may_not_train_has_no_part_and_the_parts_add_up() -> None:
    ratios = fairness(logged(60), FLEET)
    assert ratios["locale"]["de-DE"] == ratios["memory"]["1 GB"] == 0.0
    assert ratios["locale"]["en-US"] == pytest.approx(1 / 0.74, rel=0.05)
    for trait, shares in FLEET.shares().items():
        assert sum(ratios[trait][kind] * share for kind, share in shares.items()) == pytest.approx(1.0)
    assert ratios["home network"]["unmetered"] > 1 > ratios["home network"]["metered"]


def test_no_round_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(Missing, match="no round"):
        plot_fleet([], FLEET, tmp_path / "fleet.png")
