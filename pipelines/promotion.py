"""Promotion by a person: only what the gate let pass, and over customers' cases only under a name.

In goes a version and why; out comes the champion, or a sentence that says what stands against it. The metric's
verdict is the gate's and cannot be overridden; the cases are asked anew, because some may have come since.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass

from models.artifact import differences
from models.errors import BadInput, Missing
from pipelines import registry, release
from pipelines.cases import ask_cases, keep_report
from pipelines.evaluate import Verdict, judge_cases, name_cases
from pipelines.loop import weights_of
from pipelines.registry import CHALLENGER, CHAMPION, Version
from pipelines.settings import Settings

LOG = logging.getLogger("fedloop")

OVERRIDE = "fedloop.cases_override"
"""The tag of a version that was promoted over cases: by whom, why, which, when."""


@dataclass(frozen=True)
class Override:
    """A person who answers for a promotion over the cases that it loses."""

    name: str
    reason: str

    def __post_init__(self) -> None:
        if not self.name.strip() or not self.reason.strip():
            raise BadInput("to override customers' cases takes a person's name and a reason; give both")


def promote_by_hand(settings: Settings, number: int, reason: str, override: Override | None = None) -> int:
    """Promote a version (0: the challenger) that the gate let pass; returns its number.

    Raises:
        Missing: there is no such version.
        BadInput: the gate held it back by the metric, or it fails cases that the champion passes and nobody answers
            for that.
    """
    version = _asked_for(settings, number)
    tags = version.tags
    # Versions from before there were cases say it with one word.
    if tags.get("fedloop.gate_metric_passed", tags.get("fedloop.gate_passed")) != "true":
        more = "; an override is for customers' cases only" if override else ""
        raise BadInput(
            f"version {version.number} may not serve: {tags.get('fedloop.gate', 'it was never judged')}{more}"
        )
    verdict = _cases_today(settings, version)
    if verdict.regressed:
        if override is None:
            raise BadInput(
                f"version {version.number} may not serve: {verdict}; correct or withdraw what is wrong of them "
                "(`fedloop cases list`), or answer for it: `fedloop promote --override-cases NAME --reason WHY`"
            )
        about = {"by": override.name, "reason": override.reason, "cases": verdict.regressed, "at": round(time.time())}
        registry.tag(settings, version.number, {OVERRIDE: json.dumps(about)})
        reason = f"cases overridden by {override.name}: {override.reason} (lost: {name_cases(verdict.regressed)})"
        LOG.info("release: %s", reason)
    release.promote(settings, version.number, reason)
    return version.number


def _asked_for(settings: Settings, number: int) -> Version:
    if number:
        return registry.version(settings, number)
    challenger = registry.by_alias(settings, CHALLENGER)
    if challenger is None:
        raise Missing(f"{settings.model_name} has no challenger; `fedloop evaluate` makes one")
    return challenger


def _cases_today(settings: Settings, version: Version) -> Verdict:
    """What the cases of today say of a version against the champion of today."""
    champion = registry.by_alias(settings, CHAMPION)
    expected = settings.task.build_model().state_dict()
    old = None if champion is None else weights_of(settings, champion.number)
    if old is not None and differences(expected, old):
        LOG.info("promote: the champion is of another model, so it cannot be compared with on customers' cases")
        champion = old = None
    new = weights_of(settings, version.number)
    if problems := differences(expected, new):
        raise BadInput(f"version {version.number} does not fit the task {settings.task.name}: {'; '.join(problems)}")
    report = ask_cases(settings, new, old)
    keep_report(settings, report, version.number, champion.number if champion else None)
    return judge_cases(Verdict(True, ()), report)
