"""What became of a request for labels: is the model worse than before, or only asked other questions?

In: the decisions that asked, and the labels that have come since. Out: each is closed with a sentence as soon as the
labels speak clearly; where they say that the model got worse, a decision to retrain follows. Accuracies are compared
by Wilson's interval of the new one (`performance.py`), with what the same model version did before.
"""

from __future__ import annotations

import time

from monitoring import alarm
from monitoring.estimate import ENOUGH_LABELS
from monitoring.performance import accuracies
from monitoring.policy import AlarmPolicy
from monitoring.traffic import TrafficLog

_ROWS = 20_000  # the most that are read on either side
_AS_GOOD = 0.05  # a loss of accuracy that nobody retrains for


def settle(log: TrafficLog, policy: AlarmPolicy, now: float | None = None) -> list[str]:
    """Look at every open request for labels once; a sentence for each that is answered."""
    moment = time.time() if now is None else now
    waiting = [one for one in alarm.decisions(log.engine) if one.state == "asked"]
    found = [(one.decision, _settled(log, one, policy, moment)) for one in waiting]
    return [f"decision {number}: {told}" for number, told in found if told]


def _settled(log: TrafficLog, decision: alarm.Decision, policy: AlarmPolicy, now: float) -> str | None:
    evidence = decision.evidence
    start, version = int(evidence["from_seq"]), evidence["model_version"]
    since = log.between(start, start + _ROWS)
    before = log.between(max(1, start - _ROWS), start)
    since, before = since[since["model_version"] == version], before[before["model_version"] == version]
    new = next(iter(accuracies(since)), None)
    if new is None or new.labelled < ENOUGH_LABELS:
        return None
    old = next(iter(accuracies(before)), None)
    if old is not None and old.labelled >= ENOUGH_LABELS:
        usual = old.value
    elif len(before):
        usual = float(before["confidence"].mean())  # its own confidence, for want of labels
    else:
        return None
    told = f"of {new.labelled} labels {new.value:.0%} agree with the model, {usual:.0%} before"
    if new.high < usual:
        worse = dict(evidence) | {
            "answer": "retrain", "severity": "warning", "probable_cause": "worse", "asked": decision.decision,
            "sentence": f"the model got worse: {told}; {decision.sentence}",
        }  # fmt: skip
        if alarm.record(log.engine, "drift", worse, now, policy) is None:
            return None  # one is open, or the cool-down lasts: asked again at the next look
        alarm.acknowledge(log.engine, decision.decision, f"the model got worse: {told}", now)
        return f"the model got worse: {told}"
    if new.low > usual - _AS_GOOD:
        alarm.acknowledge(log.engine, decision.decision, f"the model holds: {told}", now)
        return f"the model holds: {told}"
    return None
