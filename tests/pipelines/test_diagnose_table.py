"""A table's report: every error of the model is there, with SHAP values that add up to its answer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.errors import BadInput
from models.keyboard import TASK
from models.population import partition
from pipelines.diagnose_table import SHIFTS, table_page
from pipelines.federated.layout import drawn_model, parameters_of
from pipelines.settings import DiagnosisSettings

CLIENTS = 12


def test_every_error_has_a_cause_and_the_features_that_moved_it() -> None:
    parameters = parameters_of(drawn_model(TASK, 0))
    settings = DiagnosisSettings(explained=10_000)
    page = table_page(TASK, parameters, CLIENTS, 0, settings)
    held_out = TASK.population(CLIENTS, 0).held_out(np.arange(CLIENTS))
    odds = held_out.x @ parameters["weight"][0] + parameters["bias"][0]
    wrong = ((odds > 0) != (held_out.y == 1)).numpy()
    assert page.rows == len(held_out.y)
    assert len(page.errors) == sum(page.causes.values()) == wrong.sum()
    assert page.causes["unreadable"] == 0
    assert [error.confidence for error in page.errors] == sorted((e.confidence for e in page.errors), reverse=True)
    for error in page.errors:
        assert len(error.shifts) == SHIFTS
        sizes = [abs(shift.by) for shift in error.shifts]
        assert sizes == sorted(sizes, reverse=True)
    by_client = np.array(list(page.tables[0].lines.values()))
    assert by_client.sum() == wrong.sum()


def test_the_features_that_decide_come_first_in_the_summary() -> None:
    parameters = parameters_of(drawn_model(TASK, 0))
    weight = torch.zeros_like(parameters["weight"])
    weight[0, 3] = 2.0
    page = table_page(TASK, parameters | {"weight": weight}, CLIENTS, 0, DiagnosisSettings(explained=2))
    assert page.shifts[0].feature == "feature 3"
    assert page.shifts[0].by > 0
    assert page.shifts[1].by == 0.0
    assert len(page.errors) == 2
    assert "2 of" in page.notes[-1]


def test_a_fleet_that_holds_nothing_out_is_refused_in_a_sentence() -> None:
    rows = partition(np.zeros((4, 64), dtype=np.float32), np.zeros(4, dtype=np.int64), np.arange(4))
    task = replace(TASK, population=lambda size, seed: rows)
    with pytest.raises(BadInput, match="with rows held out"):
        table_page(task, parameters_of(drawn_model(TASK, 0)), 4, 0, DiagnosisSettings())
