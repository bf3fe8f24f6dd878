"""The gate: what it lets pass, what it holds back, and what its sentences say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_sites import TINY, TINY_AUC, initial, make_site

from models.errors import BadInput
from models.task import Task
from pipelines.evaluate import Evaluation, Fresh, _report, evaluate, judge
from pipelines.federated.engines.local import LocalEngine
from pipelines.federated.jobs import EvaluateAnswer, EvaluateJob, Parameters
from pipelines.federated.scoring import replicate_weights, score_model, slice_counts
from pipelines.settings import GateSettings

GATE = GateSettings(overall_margin=0.01, site_margin=0.05, bootstrap=100, site_minimum_rows=20)


def answer_of(correct: list[list[bool]], task: Task, seed: int = 0) -> EvaluateAnswer:
    """A site's answer for models (challenger first) that are right on those of its rows: two classes in turn."""
    rows = len(correct[0])
    labels = (np.arange(rows) % 2).astype(np.int64)
    weights = replicate_weights(GATE.bootstrap, rows, seed)
    scores = []
    for right in correct:
        said = np.where(right, labels, 1 - labels)
        probabilities = np.full((rows, len(task.classes)), 0.1 / len(task.classes))
        probabilities[np.arange(rows), said] += 0.9
        scores.append(score_model(probabilities, labels, weights, task.metric == "auc"))
    slices = {"brightness": slice_counts(np.zeros(rows), (0.5,), np.array(correct))}
    return EvaluateAnswer(rows, tuple(scores), slices, weights.sum(axis=1))


def verdict_on(  # type: ignore[no-untyped-def]
    sites: dict[str, list[list[bool]]], task: Task = TINY, gate: GateSettings = GATE, fresh: Fresh | None = None
):
    answers = {name: answer_of(correct, task, i) for i, (name, correct) in enumerate(sites.items())}
    models = len(next(iter(sites.values())))
    return judge(task, answers, [_report(answers, index) for index in range(models)], gate, fresh)


def right(rows: int, share: float) -> list[bool]:
    """Right on that share of the rows, the same share of both classes."""
    return [i // 2 < round(share * rows / 2) for i in range(rows)]


tasks = pytest.mark.parametrize("task", [TINY, TINY_AUC], ids=lambda task: task.metric)


@tasks
@given(rows=st.integers(4, 60), seed=st.integers(0, 2**32), margin=st.sampled_from([0.0, 0.01]))
@settings(max_examples=12, deadline=None)
def test_an_identical_model_always_passes(task: Task, rows: int, seed: int, margin: float) -> None:
    own = (np.random.default_rng(seed).uniform(size=rows) < 0.7).tolist()
    gate = GATE.model_copy(update={"overall_margin": margin, "site_margin": 0.0})
    verdict = verdict_on({"a": [own, own], "b": [own[::-1], own[::-1]]}, task, gate)
    assert verdict.passed
    assert verdict.figures["gain"] == verdict.figures["gain_lower_bound"] == verdict.figures["worst_site_loss"] == 0.0


@tasks
@given(rows=st.integers(40, 200), champion=st.floats(0.6, 1.0), loss=st.floats(0.2, 0.5))
@settings(max_examples=12, deadline=None)
def test_a_clearly_worse_challenger_never_passes(task: Task, rows: int, champion: float, loss: float) -> None:
    verdict = verdict_on({"a": [right(rows, champion - loss), right(rows, champion)]}, task)
    assert not verdict.passed
    assert "beyond the margin" in str(verdict)
    assert str(verdict).startswith("held back: ")


@tasks
def test_a_clearly_better_challenger_passes(task: Task) -> None:
    verdict = verdict_on({"a": [right(100, 0.9), right(100, 0.7)], "b": [right(60, 0.9), right(60, 0.6)]}, task)
    assert verdict.passed
    assert verdict.figures["gain_lower_bound"] > 0.1
    assert str(verdict).startswith("passed: ")


@given(rows=st.integers(30, 300), gained=st.integers(0, 12), lost=st.integers(0, 12))
@settings(max_examples=60, deadline=None)
def test_the_overall_rule_is_the_lower_bound_against_the_margin_and_its_sentence_says_so(
    rows: int, gained: int, lost: int
) -> None:
    champion = [i >= gained for i in range(rows)]
    challenger = [i < rows - lost for i in range(rows)]
    gate = GATE.model_copy(update={"site_margin": 1.0})
    verdict = verdict_on({"a": [challenger, champion]}, gate=gate)
    within = verdict.figures["gain_lower_bound"] >= -gate.overall_margin - 1e-9
    assert verdict.passed == within
    assert ("within the margin" in verdict.sentences[0]) == within
    assert verdict.figures["gain"] == pytest.approx((gained - lost) / rows)
    assert verdict.figures["gain_lower_bound"] <= verdict.figures["gain"] + 0.02


def test_few_rows_that_disagree_prove_nothing_and_hold_back() -> None:
    """Not worse on average, but 30 rows cannot show it: the burden of proof is the challenger's."""
    champion = [i >= 6 for i in range(30)]
    challenger = [i < 24 for i in range(30)]
    verdict = verdict_on({"a": [challenger, champion]}, gate=GATE.model_copy(update={"site_margin": 1.0}))
    assert verdict.figures["gain"] == 0.0
    assert not verdict.passed


@tasks
def test_a_site_that_loses_more_than_the_margin_holds_back_and_is_named(task: Task) -> None:
    verdict = verdict_on(
        {"clinic-west": [right(200, 1.0), right(200, 0.7)], "clinic-east": [right(60, 0.7), right(60, 0.9)]}, task
    )
    assert verdict.figures["gain_lower_bound"] > 0
    assert not verdict.passed
    assert "clinic-east loses" in str(verdict)
    assert "clinic-west loses" not in str(verdict)
    assert verdict.figures["worst_site_loss"] == pytest.approx(0.2, abs=0.03)


def test_a_small_site_cannot_veto() -> None:
    sites = {"large": [right(400, 1.0), right(400, 0.7)], "small": [[False] * 19, [True] * 19]}
    assert verdict_on(sites).passed
    assert not verdict_on(sites, gate=GATE.model_copy(update={"site_minimum_rows": 19})).passed


def test_two_rows_of_forty_are_no_veto_and_the_sentence_says_that_they_may_be_chance() -> None:
    large = [right(400, 1.0), right(400, 0.7)]
    few = [[i % 20 > 1 for i in range(36)], [i % 20 > 1 or i == 20 for i in range(36)]]
    few[0][30] = False  # in all, the challenger loses two rows of 36, and gains none
    verdict = verdict_on({"large": large, "few": few})
    assert verdict.figures["worst_site_loss"] == pytest.approx(2 / 36)
    assert verdict.passed
    assert "0.056 at few, which may be chance" in str(verdict)
    many = [own * 10 for own in few]
    assert "many loses 0.056" in str(verdict_on({"large": large, "many": many}))


@pytest.mark.parametrize(("old", "new"), [(13, 12), (19, 18), (1, 0)])
def test_a_loss_of_exactly_the_margin_is_within_it(old: int, new: int) -> None:
    sites = {
        "large": [right(400, 1.0), right(400, 0.7)],
        "b": [[i < new for i in range(20)], [i < old for i in range(20)]],
    }
    verdict = verdict_on(sites)
    assert verdict.figures["worst_site_loss"] == pytest.approx(0.05)
    assert verdict.passed


def test_on_new_rows_a_challenger_must_be_better_and_a_gain_there_outweighs_noise_on_the_old_ones() -> None:
    same = {"a": [right(400, 0.9), right(400, 0.9)]}
    assert verdict_on(same, fresh=Fresh(60, 0.8, 0.6, 0.1)).passed
    for no_gain in (Fresh(60, 0.6, 0.6, 0.0), Fresh(60, 0.65, 0.6, -0.02), Fresh(60, 0.5, 0.6, -0.2)):
        held = verdict_on(same, fresh=no_gain)
        assert not held.passed
        assert "perhaps no gain" in str(held)
    noisy = {"a": [[i >= 3 for i in range(100)], [i < 97 for i in range(100)]]}
    assert not verdict_on(noisy).passed
    passed = verdict_on(noisy, fresh=Fresh(60, 0.8, 0.6, 0.1))
    assert passed.passed
    assert "within the margin of 0.05" in str(passed)
    assert "on the 60 new rows accuracy 0.600 → 0.800" in str(passed)
    assert not verdict_on({"a": [right(400, 0.8), right(400, 0.9)]}, fresh=Fresh(60, 0.8, 0.6, 0.1)).passed


@tasks
def test_a_first_model_passes_only_with_skill(task: Task) -> None:
    assert verdict_on({"a": [right(100, 0.8)]}, task).passed
    held = verdict_on({"a": [right(100, 0.5)]}, task)
    assert not held.passed
    assert "does not beat the no-skill 0.500" in str(held)


# -- on real sites ----------------------------------------------------------------------------------------------


def evaluated(root: Path, models: tuple[Parameters, Parameters | None], task: Task = TINY) -> Evaluation:
    made = {name: make_site(root, name, 6, rows, seed=i, task=task) for i, (name, rows) in enumerate(SIZES.items())}
    engine = LocalEngine({name: site for name, (site, _, _) in made.items()})
    return evaluate(engine, task, {name: ids for name, (_, _, ids) in made.items()}, *models, GATE, 0)


SIZES = {"a": 30, "b": 45, "c": 7}


def test_new_rows_are_asked_apart_and_too_few_of_them_say_nothing(tmp_path: Path) -> None:
    made = {name: make_site(tmp_path, name, 6, rows, seed=i) for i, (name, rows) in enumerate(SIZES.items())}
    engine = LocalEngine({name: site for name, (site, _, _) in made.items()})
    snapshots = {name: ids for name, (_, _, ids) in made.items()}
    models = (trained(TINY), initial())
    found = evaluate(engine, TINY, snapshots, *models, GATE, 0, {"b": snapshots["b"]}).fresh
    assert found is not None
    assert found.rows == SIZES["b"]
    alone = evaluate(engine, TINY, {"b": snapshots["b"]}, *models, GATE, 0)
    assert alone.champion is not None
    assert (found.challenger, found.champion) == (alone.challenger.overall.accuracy, alone.champion.overall.accuracy)
    assert evaluate(engine, TINY, snapshots, *models, GATE, 0, {"c": snapshots["c"]}).fresh is None
    assert evaluate(engine, TINY, snapshots, models[0], None, GATE, 0, snapshots).fresh is None


def trained(task: Task) -> Parameters:
    """Weights that know the patterns: each class' mean picture."""
    from tiny_sites import pictures

    weights = initial(0, task)
    for label in range(len(task.classes)):
        mean = pictures(np.full(20, label), 99).reshape(20, -1).mean(axis=0) / 255.0
        weights["1.weight"][label] = torch.tensor(mean - mean.mean(), dtype=torch.float32)
        weights["1.bias"][label] = 0.0
    return weights


@tasks
def test_reports_pool_the_sites_and_slices_hold_every_row(tmp_path: Path, task: Task) -> None:
    found = evaluated(tmp_path, (trained(task), initial(0, task)), task)
    report = found.challenger
    assert {name: scores.rows for name, scores in report.sites.items()} == SIZES
    assert report.overall.rows == 82
    pooled = sum(scores.rows * scores.accuracy for scores in report.sites.values()) / 82
    assert report.overall.accuracy == pytest.approx(pooled)
    assert report.overall.accuracy > 0.9
    for quartiles in report.slices.values():
        assert sum(rows for rows, _ in quartiles) == 82
        right_rows = sum(rows * accuracy for rows, accuracy in quartiles if rows)
        assert right_rows == pytest.approx(82 * report.overall.accuracy)
    assert found.verdict.passed
    assert found.champion is not None
    assert found.champion.overall.accuracy < report.overall.accuracy


def test_both_models_meet_the_same_rows_under_the_same_weights(tmp_path: Path) -> None:
    site, _, ids = make_site(tmp_path, "a", 4, 25)
    one, other = initial(0), initial(1)
    answers = [site.answer(EvaluateJob(ids, models, {}, 40, 7)) for models in ((one, other), (other, one), (one, one))]
    assert all(isinstance(answer, EvaluateAnswer) for answer in answers)
    first, swapped, twice = (answer.models for answer in answers)  # type: ignore[union-attr]
    assert np.array_equal(first[0].replicate_correct, swapped[1].replicate_correct)
    assert np.array_equal(first[1].replicate_correct, swapped[0].replicate_correct)
    assert np.array_equal(twice[0].replicate_correct, twice[1].replicate_correct)
    assert not np.array_equal(first[0].replicate_correct, first[1].replicate_correct)


def test_without_a_labelled_evaluation_row_there_is_a_sentence(tmp_path: Path) -> None:
    site, _, _ = make_site(tmp_path, "a", 6)
    for snapshots in ({}, {"a": ()}):
        with pytest.raises(BadInput, match="no site has a labelled evaluation row"):
            evaluate(LocalEngine({"a": site}), TINY, snapshots, initial(), None, GATE, 0)


def test_a_site_that_cannot_answer_is_named(tmp_path: Path) -> None:
    site, _, _ = make_site(tmp_path, "a", 6, 9)
    with pytest.raises(BadInput, match="a: site a has no snapshot lost"):
        evaluate(LocalEngine({"a": site}), TINY, {"a": ("lost",)}, initial(), None, GATE, 0)
