"""What models answer to customers' cases.

In go live cases and the weights of a challenger and a champion; out comes which of them pass, for the gate, and which
fail, for a diagnosis. Cases are central, so they are asked here and not at a site.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from models.errors import BadInput, Missing
from models.images import Images, decode_png
from models.task import Task
from monitoring import cases as book
from monitoring.cases import Case, Finding
from monitoring.traffic import TrafficLog
from pipelines.federated.jobs import Case as WrongAnswer
from pipelines.federated.jobs import Counts, Parameters
from pipelines.federated.scoring import class_probabilities
from pipelines.settings import Settings

CUSTOMERS = "a customer's case"
"""What a diagnosis and its report call the source of these wrong answers."""


@dataclass(frozen=True)
class Questions:
    """Cases as a model is asked them: images uint8 [n, height, width, channels], labels int64 [n].

    unasked: those that cannot be asked, and why: the picture is gone, or the task's input or classes have changed.
    """

    cases: tuple[Case, ...]
    images: Images
    labels: Counts
    unasked: tuple[tuple[Case, str], ...]


State = Literal["passed", "failed", "unasked", "withdrawn"]


@dataclass(frozen=True)
class CaseState:
    """A case beside what a model says of it. why: it was not asked; cause: of a wrong answer, once it was diagnosed."""

    case: Case
    state: State
    answer: str | None = None
    confidence: float | None = None
    why: str | None = None
    cause: str | None = None


@dataclass(frozen=True)
class CaseReport:
    """passed, champion_passed: bool [n], in the order of the questions. champion_passed: None where there is none."""

    questions: Questions
    passed: NDArray[np.bool_]
    champion_passed: NDArray[np.bool_] | None

    @property
    def has_champion(self) -> bool:
        return self.champion_passed is not None

    @property
    def regressed(self) -> tuple[str, ...]:
        if self.champion_passed is None:
            return ()
        lost = self.champion_passed & ~self.passed
        return tuple(self.questions.cases[i].case_id for i in np.flatnonzero(lost))

    def findings(self, challenger: int, champion: int | None) -> list[Finding]:
        """What both versions did, to be kept."""
        answers = [(challenger, self.passed)]
        if champion is not None and self.champion_passed is not None:
            answers.append((champion, self.champion_passed))
        return [
            Finding(case.case_id, case.version, number, bool(right))
            for number, passed in answers
            for case, right in zip(self.questions.cases, passed, strict=True)
        ]


@contextmanager
def opened(settings: Settings) -> Iterator[TrafficLog]:
    log = TrafficLog.open(settings.database_url, settings.images)
    try:
        yield log
    finally:
        log.close()


def questions(task: Task, log: TrafficLog, cases: Sequence[Case]) -> Questions:
    """The cases that the task can be asked today, and why the others cannot."""
    asked, images, unasked = [], [], []
    for case in cases:
        try:
            if case.expected not in task.classes:
                raise BadInput(f"the task has no class {case.expected!r} any more")
            images.append(decode_png(log.image(case.case_id), task.input))
            asked.append(case)
        except (BadInput, Missing) as error:
            unasked.append((case, str(error)))
    labels = np.array([task.classes.index(case.expected) for case in asked], dtype=np.int64)
    stacked = np.stack(images) if images else np.zeros((0, *task.input.shape), dtype=np.uint8)
    return Questions(tuple(asked), stacked, labels, tuple(unasked))


def states(
    task: Task,
    log: TrafficLog,
    cases: Sequence[Case],
    predict: Callable[[Images], NDArray[Any]] | None,
    version: int | None = None,
) -> list[CaseState]:
    """What a model says of cases. predict: images uint8 [n, height, width, channels] → [n, classes]; None: no model.

    version: of the model, whose diagnosis has the causes.
    """
    asked = questions(task, log, [case for case in cases if not case.withdrawn])
    why = {case.case_id: reason for case, reason in asked.unasked}
    found = book.findings(log.engine, version) if version else []
    causes = {(each.case_id, each.case_version): each.cause for each in found if each.cause}
    answers = {}
    if predict is not None and asked.cases:
        for case, row in zip(asked.cases, predict(asked.images), strict=True):
            best = int(row.argmax())
            said = task.classes[best]
            state: State = "passed" if said == case.expected else "failed"
            cause = causes.get((case.case_id, case.version)) if state == "failed" else None
            answers[case.case_id] = CaseState(case, state, said, float(row[best]), cause=cause)

    def state_of(case: Case) -> CaseState:
        if case.withdrawn:
            return CaseState(case, "withdrawn")
        return answers.get(case.case_id) or CaseState(case, "unasked", why=why.get(case.case_id, "no model serves"))

    return [state_of(case) for case in cases]


def ask_cases(settings: Settings, challenger: Parameters, champion: Parameters | None) -> CaseReport:
    """Both models on every live case."""
    with opened(settings) as log:
        asked = questions(settings.task, log, book.live(log.engine))

    def passed(parameters: Parameters) -> NDArray[np.bool_]:
        said = class_probabilities(settings.task, parameters, asked.images).argmax(axis=1)
        return np.asarray(said == asked.labels)

    return CaseReport(asked, passed(challenger), None if champion is None else passed(champion))


def failing_cases(settings: Settings, parameters: Parameters) -> list[tuple[Case, WrongAnswer]]:
    """The live cases that a model with these weights fails, each as a diagnosis takes it: like any wrong answer."""
    with opened(settings) as log:
        asked = questions(settings.task, log, book.live(log.engine))
        chance = class_probabilities(settings.task, parameters, asked.images)
        return [
            (case, WrongAnswer(log.image(case.case_id), int(label), int(row.argmax()), float(row.max()), CUSTOMERS))
            for case, label, row in zip(asked.cases, asked.labels, chance, strict=True)
            if row.argmax() != label
        ]


def keep_report(settings: Settings, report: CaseReport, challenger: int, champion: int | None) -> None:
    """Append what the two versions did to the findings."""
    with opened(settings) as log:
        book.keep_findings(log.engine, report.findings(challenger, champion))
