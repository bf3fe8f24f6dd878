from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import sqlalchemy as sa
from fresh_logs import Databases
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from reported_windows import EVERYWHERE, report

from monitoring import alarm
from monitoring.database import PREDICTIONS, connect
from monitoring.deciding import decide
from monitoring.policy import AlarmPolicy

POLICY = AlarmPolicy()


@pytest.fixture
def engine(databases: Databases) -> Iterator[sa.Engine]:
    with databases.url() as url:
        made = connect(url)
        yield made
        made.dispose()


def test_a_clock_that_is_set_back_leaves_the_alarm_awake(engine: sa.Engine) -> None:
    policy, day = AlarmPolicy(cooldown_s=100, per_day=1), 86_400.0
    for _ in range(2):
        report(engine, EVERYWHERE)
    first = decide(engine, policy, now=10 * day)
    assert first is not None
    alarm.claim(engine, first.decision, "run", now=10 * day)
    alarm.finish(engine, first.decision, "done", now=10 * day)
    for _ in range(2):
        report(engine, EVERYWHERE)
    assert decide(engine, policy, now=10 * day - 50) is None  # it may be another machine's clock
    assert decide(engine, policy, now=3 * day) is not None


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

    @rule(dark=st.sampled_from([False, True, True]))
    def monitor(self, dark: bool) -> None:
        report(self.engine, EVERYWHERE if dark else {})
        was_open = [d for d in alarm.decisions(self.engine) if d.state in alarm.OPEN]
        made = decide(self.engine, self.policy, now=self.now)
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
