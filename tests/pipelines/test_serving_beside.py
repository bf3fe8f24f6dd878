from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import sqlalchemy as sa
import torch
from fresh_logs import fresh_log
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from models.images import content_hash, encode_png
from models.task import find_task
from monitoring.database import SHADOW_PREDICTIONS
from monitoring.traffic import Prediction
from pipelines import serving_beside
from pipelines.registry import Version
from pipelines.serving_beside import Shadow, answer
from pipelines.serving_model import Beside, ServedModel

TASK = find_task("digits")
names = st.text("abcdefgh-0123456789", min_size=1, max_size=8)


class Says(nn.Module):
    """A model that is sure of one class, once `gate` lets it."""

    def __init__(self, label: int, gate: threading.Event | None = None) -> None:
        super().__init__()
        self.label, self.gate = label, gate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.gate is not None:
            self.gate.wait(20)
        return 10.0 * nn.functional.one_hot(torch.full((len(x),), self.label), len(TASK.classes)).float()


class Fails(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no memory left")


class Nothing(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.full((len(x), len(TASK.classes)), float("nan"))


def model(number: int, module: nn.Module) -> ServedModel:
    return ServedModel(Version(number, {}, 0.0, None), TASK, module, 0.0)


def pair(old: nn.Module, new: nn.Module, share: float = 0.0, sites: tuple[str, ...] = ()) -> ServedModel:
    return replace(model(1, old), beside=Beside(model(2, new), "canary", share, sites))


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, size=(count, 8, 8, 1), dtype=np.uint8)


def predictions(count: int, version: int = 1, label: int = 3) -> list[Prediction]:
    found = []
    for image in images(count):
        png = encode_png(image)
        found.append(
            Prediction(
                str(uuid.uuid4()), None, "s", 1.0, version, png, content_hash(png), label, 1.0, [1.0], [0.5] * 5,
            )
        )  # fmt: skip
    return found


@given(
    sites=st.sets(names, min_size=1, max_size=30),
    share=st.floats(0.01, 1.0),
    version=st.integers(1, 99),
    stranger=names,
)
def test_a_site_has_the_same_version_always_and_the_share_of_the_known_sites_is_exact(
    sites: set[str], share: float, version: int, stranger: str
) -> None:
    beside = Beside(model(version, Says(1)), "canary", share, tuple(sorted(sites)))
    chosen = {site for site in sites if beside.answers(site)}
    assert len(chosen) == max(1, round(share * len(sites)))
    again = Beside(model(version, Says(1)), "canary", share, tuple(sorted(sites, reverse=True)))
    assert {site for site in sites if again.answers(site)} == chosen
    assert beside.answers(stranger) == again.answers(stranger)
    assert not replace(beside, share=0.0).answers(min(chosen))


def test_of_many_unknown_sites_about_the_share_is_chosen_and_other_ones_for_each_version() -> None:
    sites = [f"site-{number}" for number in range(2000)]
    first, second = (
        {site for site in sites if Beside(model(version, Says(1)), "canary", 0.2).answers(site)} for version in (1, 2)
    )
    assert 320 < len(first) < 480
    assert 40 < len(first & second) < 130


@pytest.mark.parametrize("bad", [Fails(), Nothing()])
@pytest.mark.parametrize("challenger_is_bad", [True, False])
def test_where_one_version_fails_the_other_one_answers(bad: nn.Module, challenger_is_bad: bool) -> None:
    served = pair(Says(3), bad, 0.5, ("a", "b")) if challenger_is_bad else pair(bad, Says(3), 0.5, ("a", "b"))
    shares, versions = answer(served, images(4), ["a", "b", "a", "b"])
    assert versions.tolist() == [1 if challenger_is_bad else 2] * 4
    assert shares.argmax(axis=1).tolist() == [3] * 4
    with pytest.raises((RuntimeError, ArithmeticError)):
        answer(replace(served, module=bad, beside=None), images(2), ["a", "b"])


def test_each_row_of_a_batch_has_its_own_sites_version() -> None:
    served = pair(Says(3), Says(4), 0.5, ("a", "b"))
    shares, versions = answer(served, images(5), ["a", "b", "b", "a", "b"])
    assert sorted(set(versions.tolist())) == [1, 2]
    assert (shares.argmax(axis=1) == np.where(versions == 1, 3, 4)).all()
    assert versions[0] == versions[3] != versions[1] == versions[2] == versions[4]


def test_who_did_not_answer_is_logged_once_and_a_failure_as_one() -> None:
    counted: Counter[int] = Counter()
    with fresh_log() as log:
        served = pair(Says(3), Fails())
        shadow = Shadow(
            log.engine, lambda: served, lambda version, rows: counted.update({version: rows}), counted.update
        )
        mine, others = predictions(6, version=1), predictions(4, version=2)
        for batch in (mine, others, mine):  # a batch that comes twice changes nothing
            shadow.offer(batch)
        shadow.close()
        with log.engine.connect() as connection:
            rows = list(connection.execute(sa.select(SHADOW_PREDICTIONS)))
    assert {(row.prediction_id, row.model_version, row.prediction) for row in rows} == {
        *((each.prediction_id, 2, None) for each in mine),
        *((each.prediction_id, 1, 3) for each in others),
    }
    assert counted == {2: 12, 1: 4}


def test_an_answer_never_waits_for_a_shadow_that_cannot_keep_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_beside, "WAITING_BATCHES", 4)
    gate, shed = threading.Event(), []
    with fresh_log() as log:
        served = pair(Says(3), Says(4, gate))
        shadow = Shadow(log.engine, lambda: served, lambda *_: None, shed.append)
        batches = [predictions(2) for _ in range(20)]
        began = time.monotonic()
        for batch in batches:
            shadow.offer(batch)
        took = time.monotonic() - began
        gate.set()
        shadow.close()
        with log.engine.connect() as connection:
            kept = connection.execute(sa.select(sa.func.count()).select_from(SHADOW_PREDICTIONS)).scalar_one()
    assert took < 5.0  # the model waited twenty
    assert sum(shed) + kept == 40
    assert 8 <= kept <= 10  # what waited, and what was under way
