"""The embedded engine: sites stepped together do what they do one by one, and each keeps its failures to itself."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from tiny_sites import LABELLING, initial, make_engine

from pipelines.federated.jobs import Failure, Parameters, TrainAnswer, TrainJob
from pipelines.federated.layout import Layout
from pipelines.federated.plan import TrainingPlan
from pipelines.federated.rules import PLAIN, LocalRule
from pipelines.federated.scaffold import SCAFFOLD
from pipelines.federated.stages import ClipByNorm
from pipelines.federated.strategy import Strategy
from pipelines.federated.training import train
from pipelines.federated.work import LocalWork

LAYOUT = Layout.of(initial())
each_rule = pytest.mark.parametrize("rule", [PLAIN, SCAFFOLD], ids=lambda rule: rule.name)


@each_rule
def test_a_stacked_engine_trains_the_same_model_as_a_plain_one(tmp_path: Path, rule: LocalRule) -> None:
    sizes = {"a": 5, "b": 23, "c": 12, "d": 31}
    results: list[Parameters] = []
    work = LocalWork(epochs=2, batch_size=6, momentum=0.9, weight_decay=1e-3)
    for stacked in (True, False):
        engine, snapshots = make_engine(tmp_path / str(stacked), sizes, stacked)
        plan = TrainingPlan((LABELLING,), snapshots, 6, 11, Strategy(work, rule, (ClipByNorm(0.8),)))
        state = train(plan, initial(), engine, tmp_path / f"states-{stacked}")
        assert [record.reports for record in state.log] == [4] * 6
        results.append(state.parameters)
    assert max(float((results[0][name] - results[1][name]).abs().max()) for name in results[0]) < 1e-5


def jobs_for(snapshots: dict[str, tuple[str, ...]], rule: LocalRule = PLAIN, number: int = 1) -> dict[str, TrainJob]:
    """One training job for each site, as a round's are: of the same weights."""
    parameters, shared = initial(), rule.shared(LAYOUT.size)
    return {
        name: TrainJob(
            number, 0, (LABELLING,), snapshots[name], parameters, LocalWork(), rule, run="run", shared=shared
        )
        for name in snapshots
    }


@pytest.mark.parametrize("stacked", [True, False])
def test_a_failing_site_is_a_value_among_the_others_answers(tmp_path: Path, stacked: bool) -> None:
    engine, snapshots = make_engine(tmp_path, {"a": 6, "b": 6, "c": 6}, stacked)
    (tmp_path / "b" / "labels" / f"{LABELLING}.parquet").unlink()
    answers = dict(engine.ask(jobs_for(snapshots)))
    assert list(answers) == ["a", "b", "c"]
    assert isinstance(answers["b"], Failure)
    assert "b has no labelling" in answers["b"].reason
    assert isinstance(answers["a"], TrainAnswer)
    assert isinstance(answers["c"], TrainAnswer)


@pytest.mark.parametrize("stacked", [True, False])
def test_a_site_that_cannot_keep_what_its_rule_needs_fails_alone(
    tmp_path: Path, stacked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, snapshots = make_engine(tmp_path, {"a": 6, "b": 6, "c": 6}, stacked)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(engine.sites["b"].store, "remember", full)
    answers = dict(engine.ask(jobs_for(snapshots, SCAFFOLD)))
    assert list(answers) == ["a", "b", "c"]
    assert answers["b"] == Failure("b: OSError (the site's own log says more)")
    assert isinstance(answers["a"], TrainAnswer)
    assert isinstance(answers["c"], TrainAnswer)


@each_rule
def test_large_cohorts_are_stacked_in_chunks_and_keep_their_order_and_what_each_site_remembers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: LocalRule
) -> None:
    monkeypatch.setattr("pipelines.federated.engines.local.CHUNK", 2)
    sizes = {name: 4 + place for place, name in enumerate("abcde")}
    engine, snapshots = make_engine(tmp_path / "stacked", sizes, True)
    other, _ = make_engine(tmp_path / "plain", sizes, False)
    for number in (1, 2):
        asked = jobs_for(snapshots, rule, number)
        for (name, answer), (same, expected) in zip(engine.ask(asked), other.ask(asked), strict=True):
            assert name == same
            assert isinstance(answer, TrainAnswer)
            assert isinstance(expected, TrainAnswer)
            assert torch.allclose(answer.update, expected.update, rtol=1e-4, atol=1e-5)
            assert (answer.examples, answer.weight) == (expected.examples, expected.weight)
            assert answer.loss == pytest.approx(expected.loss, abs=1e-5)
            kept, apart = (each.sites[name].store.recall("run", number + 1) for each in (engine, other))
            assert kept.keys() == apart.keys() == set(rule.memory)
            assert all(torch.allclose(kept[key], apart[key], rtol=1e-4, atol=1e-4) for key in kept)
