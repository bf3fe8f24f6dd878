"""The gate and customers' cases: what holds a challenger back, what is only reported, what a person may override."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from test_loop import in_small, run_steps

from models import artifact
from models.errors import BadInput
from models.images import content_hash, encode_png
from monitoring import cases as book
from monitoring.cases import Case, Submission, short
from monitoring.pictures import Pictures
from pipelines import challenger, gather, loop, packing, registry, release
from pipelines.cases import CaseReport, Questions, ask_cases, failing_cases, opened, questions
from pipelines.evaluate import Verdict, judge_cases
from pipelines.federated.jobs import Parameters
from pipelines.federated.layout import drawn_model, parameters_of
from pipelines.federated.scoring import class_probabilities
from pipelines.promotion import OVERRIDE, Override, promote_by_hand
from pipelines.registry import CHAMPION, Version
from pipelines.settings import Settings
from pipelines.tracking import Run

Register = Callable[..., Version]
NOISE = np.random.default_rng(0).integers(0, 256, size=(300, 8, 8, 1), dtype=np.uint8)


def submit(settings: Settings, expected: dict[int, int]) -> dict[int, str]:
    """Cases of NOISE pictures, by number → class; their ids."""
    given = [Submission(encode_png(NOISE[i]), settings.task.classes[label]) for i, label in expected.items()]
    with opened(settings) as log:
        return {i: taken.case.case_id for i, taken in zip(expected, book.submit(log, given), strict=True)}


def answers(settings: Settings, parameters: Parameters) -> np.ndarray:
    return class_probabilities(settings.task, parameters, NOISE).argmax(axis=1)


def disagreeing(settings: Settings, one: Parameters, other: Parameters) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What both answer to NOISE, and where they differ."""
    a, b = answers(settings, one), answers(settings, other)
    where = np.flatnonzero(a != b)
    assert len(where) >= 6, "the two models answer alike, so there is nothing to judge"
    return a, b, where


# -- the verdict ------------------------------------------------------------------------------------------------


def report(new: list[bool], old: list[bool] | None, unasked: int = 0) -> CaseReport:
    def case(number: int) -> Case:
        return Case(number, f"{number:032x}", 1, "7", False, None, "customer", "", 0.0)

    asked = tuple(case(number) for number in range(len(new)))
    gone = tuple((case(1000 + number), "the picture is gone") for number in range(unasked))
    images, labels = np.zeros((len(new), 8, 8, 1), dtype=np.uint8), np.zeros(len(new), dtype=np.int64)
    questions = Questions(asked, images, labels, gone)
    return CaseReport(questions, np.array(new, dtype=bool), None if old is None else np.array(old, dtype=bool))


@given(
    both=st.lists(st.tuples(st.booleans(), st.booleans()), max_size=12),
    metric=st.booleans(),
    first=st.booleans(),
    unasked=st.integers(0, 2),
)
@examples(max_examples=80, deadline=None)
def test_only_what_the_champion_passes_and_the_challenger_fails_is_a_veto(
    both: list[tuple[bool, bool]], metric: bool, first: bool, unasked: int
) -> None:
    found = report([new for new, _ in both], None if first else [old for _, old in both], unasked)
    verdict = judge_cases(Verdict(metric, ("accuracy is as it is",), {"gain": 0.1}), found)
    lost = 0 if first else sum(old and not new for new, old in both)
    failed = sum(not new for new, _ in both)
    assert verdict.metric_passed == metric
    assert verdict.passed == (metric and not lost)
    assert len(verdict.regressed) == verdict.figures["cases_regressed"] == lost
    assert (verdict.figures["cases"], verdict.figures["cases_failed"]) == (len(both), failed)
    assert verdict.figures["gain"] == 0.1
    assert verdict.sentences[0] == "accuracy is as it is"
    assert all(short(name) in str(verdict) for name in verdict.regressed[:3])
    assert (f"and {lost - 3} more" in str(verdict)) == (lost > 3)
    assert ("cannot be asked" in str(verdict)) == (unasked > 0)
    assert str(verdict).startswith("passed: " if verdict.passed else "held back")
    assert ("by customers' cases" in str(verdict)) == (metric and lost > 0)


# -- on real models ---------------------------------------------------------------------------------------------


def test_the_gate_holds_back_a_challenger_that_fails_a_submitted_case_and_says_which(settings: Settings) -> None:
    tiny = in_small(settings)
    # Wide margins, so that nothing but the cases can hold back.
    gate = tiny.gate.model_copy(update={"overall_margin": 1.0, "site_margin": 1.0})
    tiny = tiny.model_copy(update={"gate": gate})
    submit(tiny, {0: 0, 1: 1})  # before there is any model
    first = run_steps(tiny)
    assert first.found.verdict.passed, "a first model's cases are only reported"
    tags = registry.version(tiny, 1).tags
    assert tags["cases"] == "2"
    assert "customers' cases pass" in tags["fedloop.gate"]

    material = gather.gather(tiny)
    assert material.parent == 1
    quick = tiny.training.model_copy(update={"learning_rate": 0.5})
    trained = loop.fit(tiny.model_copy(update={"training": quick}), material, None)
    champion, new = loop.weights_of(tiny, 1), loop.trained_weights(trained)
    old_answers, new_answers, differ = disagreeing(tiny, champion, new)
    same = [int(i) for i in np.flatnonzero(old_answers == new_answers) if i > 1]
    lost, won = differ[differ > 1][:5], differ[differ > 1][5:6]
    regressing = submit(tiny, {int(i): int(old_answers[i]) for i in lost})
    submit(tiny, {int(i): int(new_answers[i]) for i in won})
    submit(tiny, {same[0]: int((old_answers[same[0]] + 1) % 10), same[1]: int(new_answers[same[1]])})

    found = challenger.judge_challenger(tiny, material, trained)
    verdict = found.verdict
    assert verdict.metric_passed
    assert not verdict.passed
    assert set(verdict.regressed) >= set(regressing.values())
    assert len(set(verdict.regressed) - set(regressing.values())) <= 2  # the first two may have been lost as well
    assert verdict.figures["cases"] == 10
    assert verdict.figures["cases_failed"] == verdict.figures["cases_regressed"] + _failed_by_both(found.cases)
    assert str(verdict).startswith("held back by customers' cases: accuracy")
    assert short(verdict.regressed[0]) in str(verdict)

    version = challenger.enter_registry(tiny, material, None, trained, found)
    said = challenger.decide(tiny, material, version, verdict, "test")
    assert "stays challenger: held back by customers' cases" in said
    assert registry.by_alias(tiny, CHAMPION).number == 1  # type: ignore[union-attr]
    tags = registry.version(tiny, 2).tags
    assert (tags["fedloop.gate_passed"], tags["fedloop.gate_metric_passed"]) == ("false", "true")
    assert (tags["cases"], tags["cases_regressed"]) == ("10", str(len(verdict.regressed)))
    assert json.loads(tags["fedloop.cases_regressed"]) == list(verdict.regressed)
    with opened(tiny) as log:
        kept = {finding.case_id: finding.passed for finding in book.findings(log.engine, 2)}
        assert len(kept) == 10
        assert {name for name, passed in kept.items() if not passed} >= set(regressing.values())
        assert all(each.passed for each in book.findings(log.engine, 1) if each.case_id in regressing.values())

    with pytest.raises(BadInput, match=r"held back by customers' cases: .*--override-cases NAME --reason WHY"):
        promote_by_hand(tiny, 0, "by hand")
    wrong = failing_cases(tiny, new)
    assert {case.case_id for case, _ in wrong} == {name for name, passed in kept.items() if not passed}
    assert all(content_hash(asked.png) == case.case_id for case, asked in wrong)
    assert all(asked.label == tiny.task.classes.index(case.expected) != asked.prediction for case, asked in wrong)

    # What customers take back holds nobody back: the cases of today count, not those of the judgement.
    with opened(tiny) as log:
        for case_id in verdict.regressed:
            book.withdraw(log.engine, case_id, "the label was wrong")
    assert promote_by_hand(tiny, 0, "by hand") == 2
    assert release.history(tiny)[-1].reason == "by hand"


def _failed_by_both(cases: CaseReport | None) -> int:
    assert cases is not None
    assert cases.champion_passed is not None
    return int((~cases.passed & ~cases.champion_passed).sum())


@pytest.fixture
def pair(settings: Settings) -> tuple[Settings, list[str]]:
    """Version 1 is champion; version 2 passed the metric, and fails cases that have come since."""
    for seed in (1, 2):
        generator = torch.Generator().manual_seed(seed)
        drawn = parameters_of(drawn_model(settings.task, seed))
        # So far apart that the two answer differently.
        weights = {name: each + 0.5 * torch.randn(each.shape, generator=generator) for name, each in drawn.items()}
        tags = {"fedloop.gate_passed": "true", "fedloop.gate_metric_passed": "true"}
        key = f"seed-{seed}"
        registry.register(
            settings, parameters=weights, key=key, tags=tags, figures={}, summary=None, example=NOISE[:1],
            run_id=Run.start(settings, "training", key).run_id,
        )  # fmt: skip
    release.promote(settings, 1, "first")
    champion, new = loop.weights_of(settings, 1), loop.weights_of(settings, 2)
    old_answers, _, differ = disagreeing(settings, champion, new)
    made = submit(settings, {int(i): int(old_answers[i]) for i in differ[:4]})
    return settings, list(made.values())


def test_a_case_that_came_after_the_judgement_is_asked_too(pair: tuple[Settings, list[str]]) -> None:
    settings, lost = pair
    with pytest.raises(BadInput, match=f"4 that the champion passes, this one fails: {short(lost[0])}"):
        promote_by_hand(settings, 2, "by hand")
    assert registry.by_alias(settings, CHAMPION).number == 1  # type: ignore[union-attr]


def test_an_override_takes_a_name_and_a_reason_and_both_are_recorded(pair: tuple[Settings, list[str]]) -> None:
    settings, lost = pair
    for name, reason in (("", "why"), (" ", "why"), ("Ana Ruiz", ""), ("Ana Ruiz", " ")):
        with pytest.raises(BadInput, match="a person's name and a reason"):
            Override(name, reason)
    assert promote_by_hand(settings, 2, "x", Override("Ana Ruiz", "the old scanner is gone")) == 2
    last = release.history(settings)[-1]
    assert (last.version, last.previous) == (2, 1)
    assert last.reason.startswith("cases overridden by Ana Ruiz: the old scanner is gone (lost: ")
    assert short(lost[0]) in last.reason
    tags = registry.version(settings, 2).tags
    about = json.loads(tags[OVERRIDE])
    assert (about["by"], about["reason"]) == ("Ana Ruiz", "the old scanner is gone")
    assert sorted(about["cases"]) == sorted(lost)
    assert tags["fedloop.promoted"] == last.reason


def test_an_override_of_cases_does_not_override_the_metric(pair: tuple[Settings, list[str]]) -> None:
    settings, _ = pair
    held = {"fedloop.gate_metric_passed": "false", "fedloop.gate_passed": "false", "fedloop.gate": "held back: worse"}
    registry.tag(settings, 2, held)
    with pytest.raises(BadInput, match=r"held back: worse; an override is for customers' cases only"):
        promote_by_hand(settings, 2, "x", Override("Ana Ruiz", "I want it"))
    assert registry.by_alias(settings, CHAMPION).number == 1  # type: ignore[union-attr]
    assert OVERRIDE not in registry.version(settings, 2).tags


def test_where_no_case_is_lost_an_override_leaves_no_trace(settings: Settings, register: Register) -> None:
    registry.tag(settings, register(1).number, {"fedloop.gate_passed": "true"})  # as versions before there were cases
    submit(settings, {0: 3})
    assert promote_by_hand(settings, 0, "by hand", Override("Ana Ruiz", "to be sure")) == 1, "no champion, no veto"
    assert OVERRIDE not in registry.version(settings, 1).tags
    assert release.history(settings)[-1].reason == "by hand"


def test_a_champion_of_another_model_cannot_be_compared_with(pair: tuple[Settings, list[str]]) -> None:
    """The task's model has changed: the old champion's weights fit it no more."""
    settings, _ = pair
    registry.register(
        settings, parameters=settings.task.build_model().state_dict(), key="new", tags={"fedloop.gate_passed": "true"},
        figures={}, summary=None, example=NOISE[:1], run_id=Run.start(settings, "training", "new").run_id,
    )  # fmt: skip
    folder = registry.fetch(settings, 1)
    tensors, words = artifact.read(folder)
    origin = json.loads((folder / "origin.json").read_text())["origin"]
    artifact.save(folder, "digits", tensors | {"extra": torch.zeros(1)}, words)
    packing.seal(folder, origin)
    assert promote_by_hand(settings, 3, "a new model") == 3


def test_a_case_that_cannot_be_asked_is_reported_and_vetoes_nothing(
    pair: tuple[Settings, list[str]],
) -> None:
    settings, lost = pair
    champion, new = loop.weights_of(settings, 1), loop.weights_of(settings, 2)
    assert Pictures(settings.images).remove_unless_young(lost[0], young_s=0) > 0
    found = ask_cases(settings, new, champion)
    assert [(case.case_id, "not in the image store" in why) for case, why in found.questions.unasked] == [
        (lost[0], True)
    ]
    assert set(found.regressed) == set(lost[1:])
    assert "1 cannot be asked" in str(judge_cases(Verdict(True, ()), found))

    task = settings.task
    other = replace(task, input=replace(task.input, height=9))
    with opened(settings) as log:
        everything = questions(other, log, book.live(log.engine))
        assert len(everything.cases) == 0
        assert any("the image is 8×8 pixels; this task takes 8×9" in why for _, why in everything.unasked)
        renamed = replace(task, classes=tuple("abcdefghij"))
        assert all("no class" in why for _, why in questions(renamed, log, book.live(log.engine)).unasked)
    verdict = judge_cases(Verdict(True, ()), CaseReport(everything, np.zeros(0, bool), np.zeros(0, bool)))
    assert verdict.passed
    assert "4 cannot be asked" in str(verdict)
