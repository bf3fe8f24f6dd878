from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
import sqlalchemy as sa
from fresh_logs import Databases
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from pydantic import ValidationError

from monitoring import alarm
from monitoring.alarm import AlarmPolicy
from monitoring.database import PREDICTIONS, WINDOWS, connect

POLICY = AlarmPolicy()
ROWS = 100


@pytest.fixture
def engine(databases: Databases) -> Iterator[sa.Engine]:
    with databases.url() as url:
        made = connect(url)
        yield made
        made.dispose()


def scope(ratio: float, what: str = "brightness", now: float = 0.10) -> dict[str, Any]:
    column = {
        "column": what, "what": what, "value": ratio * 0.2, "threshold": 0.2, "ratio": ratio, "was": 0.32, "now": now,
    }  # fmt: skip
    return {"rows": ROWS, "odd": ratio > 3, "worst": ratio, "columns": {what: column}}


def report(engine: sa.Engine, version: int = 1, **ratios: float) -> int:
    """A reported window whose scopes are as far off as said; the underscore of site_1 becomes a hyphen."""
    scopes = {name.replace("_", "-"): scope(ratio) for name, ratio in ratios.items()}
    with engine.begin() as connection:
        last = connection.execute(sa.select(sa.func.max(WINDOWS.c.to_seq))).scalar_one() or 1
        inserted = connection.execute(
            sa.insert(WINDOWS).values(
                from_seq=last,
                to_seq=last + ROWS,
                rows=ROWS,
                started_at=0.0,
                ended_at=1.0,
                model_version=version,
                odd=int(any(s["odd"] for s in scopes.values())),
                evidence={"scopes": scopes, "mix": {"site-1": 50, "site-2": 50}, "notes": [], "rows": ROWS},
            )
        )
        assert inserted.inserted_primary_key is not None
        return int(inserted.inserted_primary_key[0])


def test_one_odd_window_is_no_alarm_and_the_second_is(engine: sa.Engine) -> None:
    report(engine, overall=7.0)
    assert alarm.decide(engine, POLICY, now=0.0) is None
    report(engine, overall=7.0)
    decision = alarm.decide(engine, POLICY, now=0.0)
    assert decision is not None
    assert decision.state == "waiting"
    assert (decision.evidence["from_seq"], decision.evidence["to_seq"]) == (1, 201)


def test_two_odd_ones_among_three_are_enough_and_among_four_are_not(engine: sa.Engine) -> None:
    for ratio in (7.0, 1.0, 1.0, 7.0):
        report(engine, overall=ratio)
        assert alarm.decide(engine, POLICY, now=0.0) is None
    report(engine, overall=1.0)
    report(engine, overall=7.0)
    assert alarm.decide(engine, POLICY, now=0.0) is not None


def test_odd_windows_must_agree_on_where(engine: sa.Engine) -> None:
    report(engine, overall=1.0, site_1=5.0)
    report(engine, overall=1.0, site_2=5.0)
    assert alarm.decide(engine, POLICY, now=0.0) is None
    report(engine, overall=1.0, site_1=5.0)
    decision = alarm.decide(engine, POLICY, now=0.0)
    assert decision is not None
    assert decision.evidence["sites"] == ["site-1"]
    assert decision.evidence["windows"] == [1, 3]


def test_windows_of_an_older_version_do_not_count(engine: sa.Engine) -> None:
    report(engine, version=1, overall=7.0)
    report(engine, version=2, overall=7.0)
    assert alarm.decide(engine, POLICY, now=0.0) is None


def test_the_evidence_says_what_happened_in_a_sentence(engine: sa.Engine) -> None:
    for _ in range(2):
        report(engine, overall=7.1, site_1=6.0, site_2=6.0)
    decision = alarm.decide(engine, POLICY, label_budget=0.1, now=0.0)
    assert decision is not None
    assert decision.sentence == (
        "brightness fell from 0.32 to 0.10 (7.1 x its threshold) at all 2 sites in windows 1-2"
    )
    column = decision.evidence["columns"]["brightness"]
    assert (column["value"], column["threshold"], column["times"]) == (pytest.approx(1.42), 0.2, 2)
    assert decision.evidence["label_budget"] == 0.1


def test_used_windows_raise_no_second_alarm(engine: sa.Engine) -> None:
    policy = AlarmPolicy(cooldown_s=0)
    for _ in range(3):
        report(engine, overall=7.0)
    first = alarm.decide(engine, policy, now=0.0)
    assert first is not None
    alarm.claim(engine, first.decision, "run", now=1.0)
    alarm.finish(engine, first.decision, "version 2 is champion", now=2.0)
    report(engine, overall=7.0)
    assert alarm.decide(engine, policy, now=10.0) is None
    report(engine, overall=7.0)
    second = alarm.decide(engine, policy, now=10.0)
    assert second is not None
    assert second.evidence["windows"] == [4, 5]


def test_a_clock_that_is_set_back_leaves_the_alarm_awake(engine: sa.Engine) -> None:
    policy, day = AlarmPolicy(cooldown_s=100, per_day=1), 86_400.0
    for _ in range(2):
        report(engine, overall=7.0)
    first = alarm.decide(engine, policy, now=10 * day)
    assert first is not None
    alarm.claim(engine, first.decision, "run", now=10 * day)
    alarm.finish(engine, first.decision, "done", now=10 * day)
    for _ in range(2):
        report(engine, overall=7.0)
    assert alarm.decide(engine, policy, now=10 * day - 50) is None  # it may be another machine's clock
    assert alarm.decide(engine, policy, now=3 * day) is not None


def test_two_monitors_at_once_make_one_decision(engine: sa.Engine) -> None:
    for _ in range(2):
        report(engine, overall=7.0)
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: alarm.decide(engine, POLICY, now=0.0), range(16)))
    assert sum(decision is not None for decision in made) == 1


def test_one_of_many_claimants_gets_the_decision_and_may_ask_again(engine: sa.Engine) -> None:
    number = alarm.record(engine, "drift", {}, 0.0, POLICY)
    assert number is not None
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda run: alarm.claim(engine, number, f"run-{run}"), range(16)))
    assert sum(got) == 1
    assert alarm.claim(engine, number, f"run-{got.index(True)}")
    assert alarm.decisions(engine)[0].attempts == 1


def test_a_decision_whose_runs_keep_dying_is_given_up_after_three(engine: sa.Engine) -> None:
    number = alarm.record(engine, "drift", {}, 0.0, POLICY)
    assert number is not None
    for run in range(3):
        assert alarm.claim(engine, number, f"run-{run}")
        assert alarm.requeue(engine, number) == (run < 2)
    found = alarm.decisions(engine)[0]
    assert (found.state, found.attempts) == ("failed", 3)
    assert not alarm.claim(engine, number, "late")


def test_a_late_word_does_not_change_what_is_settled(engine: sa.Engine) -> None:
    number = alarm.record(engine, "drift", {}, 0.0, POLICY)
    assert number is not None
    alarm.claim(engine, number, "run")
    assert not alarm.emitted(engine, number)
    assert alarm.finish(engine, number, "done with it")
    assert not alarm.requeue(engine, number)
    assert not alarm.finish(engine, number, "again", "failed")
    assert alarm.decisions(engine)[0].outcome == "done with it"


def test_a_retraining_waits_until_enough_rows_are_new(engine: sa.Engine) -> None:
    row = {
        "site": "site-1", "at": 0.0, "model_version": 1, "image_hash": "0" * 32, "prediction": 0, "confidence": 1.0,
        "probabilities": [1.0], "brightness": 0, "contrast": 0, "sharpness": 0, "saturation": 0, "noise": 0,
    }  # fmt: skip
    with engine.begin() as connection:
        connection.execute(sa.insert(PREDICTIONS), [row | {"prediction_id": str(i)} for i in range(30)])
    alarm.record(engine, "drift", {"from_seq": 11}, 0.0, POLICY)
    (decision,) = alarm.pending(engine)
    assert alarm.enough_rows(engine, decision, 20)
    assert not alarm.enough_rows(engine, decision, 21)


def test_a_policy_that_can_never_fire_is_refused() -> None:
    with pytest.raises(ValidationError, match="of_windows"):
        AlarmPolicy(odd_windows=4, of_windows=3)
    with pytest.raises(ValidationError):
        AlarmPolicy(odd_windows=1)


class Rules(RuleBasedStateMachine):
    """Whatever monitors, runs and reconcilers do: one open decision, a cool-down, a daily number."""

    policy = AlarmPolicy(cooldown_s=100, per_day=3)

    def __init__(self, databases: Databases) -> None:
        super().__init__()
        self.own = ExitStack()
        self.engine = connect(self.own.enter_context(databases.url()))
        self.now = 1000.0
        self.finished_at = -1e9
        self.made_at: list[float] = []

    @rule(seconds=st.sampled_from([1.0, 60.0, 99.0, 101.0, 50_000.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(ratio=st.sampled_from([1.0, 7.0, 7.0]))
    def monitor(self, ratio: float) -> None:
        report(self.engine, overall=ratio)
        was_open = [d for d in alarm.decisions(self.engine) if d.state in alarm.OPEN]
        made = alarm.decide(self.engine, self.policy, now=self.now)
        if made is not None:
            assert not was_open
            assert self.now - self.finished_at >= self.policy.cooldown_s
            self.made_at.append(self.now)

    @rule(run=st.sampled_from(["a", "b"]))
    def claim(self, run: str) -> None:
        for decision in alarm.pending(self.engine):
            alarm.claim(self.engine, decision.decision, run, now=self.now)

    @rule(what=st.sampled_from(["done", "failed", "died", "emitted"]))
    def proceed(self, what: str) -> None:
        for decision in [d for d in alarm.decisions(self.engine) if d.state in alarm.OPEN]:
            number = decision.decision
            if what == "emitted":
                alarm.emitted(self.engine, number, now=self.now)
            elif what == "died":
                alarm.requeue(self.engine, number, now=self.now)
            else:
                alarm.finish(self.engine, number, "", "done" if what == "done" else "failed", now=self.now)
            after = next(d for d in alarm.decisions(self.engine) if d.decision == number)
            if after.state in alarm.FINISHED:
                self.finished_at = self.now

    @invariant()
    def at_most_one_is_open(self) -> None:
        assert len([d for d in alarm.decisions(self.engine) if d.state in alarm.OPEN]) <= 1

    @invariant()
    def no_window_is_used_twice(self) -> None:
        used = [number for d in alarm.decisions(self.engine) for number in d.evidence["windows"]]
        assert len(used) == len(set(used))

    @invariant()
    def the_daily_number_holds(self) -> None:
        for first in self.made_at:
            assert sum(first <= at < first + 86_400 for at in self.made_at) <= self.policy.per_day

    def teardown(self) -> None:
        self.engine.dispose()
        self.own.close()


def test_the_rules_hold_whatever_monitors_runs_and_reconcilers_do(databases: Databases) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        lambda: Rules(databases), settings=settings(max_examples=15, stateful_step_count=40, deadline=None)
    )
