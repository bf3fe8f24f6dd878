"""What has probably happened, how bad it is, and what it calls for: a table of rules over an alarm's evidence.

In: which columns moved where and how. Out: a cause with its answer (retrain, ask for labels, page a person), a
severity and a sentence. The first rule that holds counts; a new cause is a line in `RULES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from models.quality import QUALITY_COLUMNS
from monitoring.alarm import BROKEN, Answer
from monitoring.error_evidence import ERRORS

Severity = Literal["notice", "warning", "critical"]

_ANSWERS = ("prediction", "confidence")  # columns that say what the model made of its input
_OUTCOMES = (*_ANSWERS, ERRORS)
_SPEAKS = math.log(20.0)  # evidence from which labels alone say that the model errs
_MISSING = 0.5  # share of unusable values from which a camera is called broken
_CONSTANT = 0.01  # standard deviation, in units of the reference's, below which a column is called constant
_ONLY_NOISE = 1.03  # contrast by noise: 1.0 in the dark, 1.06 and more where a tenth of the light is left
_DARK, _BRIGHT = 0.01, 0.99  # mean brightness below or above which no picture shows anything
_MANY = 3.0  # times its threshold: a column that is so far off, everywhere, is critical


@dataclass(frozen=True)
class Facts:
    """columns: those that moved, the loudest first, each as ColumnDrift with `log_evidence`; everywhere: at more
    sites than not. newest: what the last windows showed, one mapping of all columns for each scope that moved.
    """

    columns: Mapping[str, Mapping[str, Any]]
    everywhere: bool
    newest: Sequence[Mapping[str, Mapping[str, Any]]]

    def speaks(self, *names: str) -> float:
        """The most evidence that one of these columns has."""
        return max((float(self.columns[name]["log_evidence"]) for name in names if name in self.columns), default=0.0)

    def far(self, *names: str) -> float:
        """How many times its threshold the farthest of these columns is off."""
        return max((float(self.columns[name]["ratio"]) for name in names if name in self.columns), default=0.0)

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(name for name in self.columns if name not in _OUTCOMES)


@dataclass(frozen=True)
class Cause:
    """name: as it stands in a decision; says: the end of its sentence."""

    name: str
    answer: Answer
    says: str


def _broken(facts: Facts) -> bool:
    return any(_only_noise(scope) or any(_is_broken(*each) for each in scope.items()) for scope in facts.newest)


def _is_broken(name: str, column: Mapping[str, Any]) -> bool:
    """Without value, without any variation, or without light or shadow: nothing that a scene would make."""
    if name in _OUTCOMES:
        return False
    if str(column["what"]).startswith("the share of missing") and column["now"] >= _MISSING:
        return True
    if column.get("spread") is not None and column["spread"] <= _CONSTANT:
        return True
    return name == "brightness" and not _DARK < column["now"] < _BRIGHT


def _only_noise(scope: Mapping[str, Mapping[str, Any]]) -> bool:
    """Pictures whose whole contrast is noise, as with the cap on the lens."""
    if not {"contrast", "noise"} <= set(scope):
        return False
    noise = float(scope["noise"]["now"])
    return noise > 0.0 and float(scope["contrast"]["now"]) <= _ONLY_NOISE * noise


def _answers_alone(facts: Facts) -> bool:
    """The inputs of another mix of classes differ a little too; but less than the answers, and not as far.

    Both are asked: in the dark a model's confidence speaks as loudly as the light, which is farther off.
    """
    return facts.speaks(*facts.inputs) < facts.speaks(*_ANSWERS) and facts.far(*facts.inputs) < facts.far(*_ANSWERS)


RULES: tuple[tuple[Callable[[Facts], bool], Cause], ...] = (
    (_broken, Cause(BROKEN, "person", "a broken camera or sensor; nothing is retrained until somebody has looked")),
    (
        lambda facts: facts.speaks(ERRORS) > max(_SPEAKS, facts.speaks(*facts.inputs)),
        Cause(ERRORS, "retrain", "by the labels that came since, the model errs"),
    ),
    (
        lambda facts: _answers_alone(facts) and facts.speaks("prediction") >= facts.speaks("confidence"),
        Cause("label shift", "labels", "another mix of classes, or the model errs; labels would tell"),
    ),
    (
        _answers_alone,
        Cause("doubt", "labels", "the model doubts inputs that look the same; labels would tell"),
    ),
    (
        lambda facts: facts.speaks(*QUALITY_COLUMNS) > facts.speaks("embedding_distance"),
        Cause("light", "retrain", "camera or lighting"),
    ),
    (lambda facts: facts.speaks("embedding_distance") > 0, Cause("content", "retrain", "pictures of another kind")),
    (lambda facts: True, Cause("inputs", "retrain", "the inputs have changed")),
)
SILENCE = Cause("silence", "person", "its line or its sender may be down")


def probable_cause(facts: Facts) -> tuple[Cause, Severity]:
    """The first cause whose rule holds, and how bad it is."""
    cause = next(cause for holds, cause in RULES if holds(facts))
    worst = max((float(column["ratio"]) for column in facts.columns.values()), default=0.0)
    if cause.answer == "person" or (facts.everywhere and worst >= _MANY and cause.answer == "retrain"):
        return cause, "critical"
    return cause, "notice" if cause.answer == "labels" else "warning"


def sentence(
    columns: Mapping[str, Mapping[str, Any]],
    sites: Sequence[str],
    watched: Sequence[str],
    at: Sequence[int],
    cause: Cause,
) -> str:
    """For example: brightness fell by 69% from 0.32 to 0.10 (7.1 x its threshold) at site-3 in windows 21-22, all else
    stable: camera or lighting.
    """
    first, *others = columns.values()
    direction = "fell" if first["now"] < first["was"] else "rose"
    share = str(first["what"]).startswith("the share")
    by = f" by {abs(first['now'] / first['was'] - 1.0):.0%}" if not share and first["was"] > 1e-3 else ""
    how_far = f"{first['ratio']:.1f} x its threshold" if first["ratio"] > 1.0 else "little, but window after window"
    moved = f"{first['what']} {direction}{by} from {first['was']:.2f} to {first['now']:.2f} ({how_far})"
    if not sites:
        where = "over all sites together"
    elif len(sites) == len(watched) and len(sites) > 1:
        where = f"at all {len(sites)} sites"
    else:
        where = f"at {', '.join(sites)}"
    also = f"; so did {len(others)} more columns" if len(others) > 1 else "; so did one more column" if others else ""
    return f"{moved} {where} in {spans(at)}{also or ', all else stable'}: {cause.says}"


def spans(numbers: Sequence[int]) -> str:
    """Windows 1, 2, 3, 5 as "windows 1-3, 5"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    told = ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)
    return f"window {told}" if len(numbers) == 1 else f"windows {told}"
