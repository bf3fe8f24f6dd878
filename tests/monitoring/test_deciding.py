from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import ValidationError
from reported_windows import DARK, EVERYWHERE, report

from models.errors import BadInput, Missing
from monitoring import alarm
from monitoring.database import connect
from monitoring.deciding import decide
from monitoring.policy import AlarmPolicy, Period

POLICY = AlarmPolicy()
AT_NOON = datetime(2026, 3, 4, 12).timestamp()  # a Wednesday


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    made = connect(f"sqlite:///{tmp_path / 'log.db'}")
    yield made
    made.dispose()


def test_one_dark_window_is_no_alarm_and_the_second_is(engine: sa.Engine) -> None:
    report(engine, EVERYWHERE)
    assert decide(engine, POLICY, now=0.0) is None
    report(engine, EVERYWHERE)
    decision = decide(engine, POLICY, now=0.0)
    assert decision is not None
    assert decision.state == "waiting"
    assert (decision.evidence["from_seq"], decision.evidence["to_seq"]) == (1, 201)


def test_a_lamp_that_flickers_once_raises_no_alarm_however_long_one_looks(engine: sa.Engine) -> None:
    for number in range(30):
        report(engine, EVERYWHERE if number == 3 else {})
        assert decide(engine, POLICY, now=0.0) is None


def test_without_persistence_one_window_is_enough(engine: sa.Engine) -> None:
    report(engine, EVERYWHERE)
    assert decide(engine, AlarmPolicy(persistence=1), now=0.0) is not None


def test_windows_must_agree_on_where(engine: sa.Engine) -> None:
    report(engine, {"site-1": DARK})
    report(engine, {"site-2": DARK})
    assert decide(engine, POLICY, now=0.0) is None
    report(engine, {"site-1": DARK})
    decision = decide(engine, POLICY, now=0.0)
    assert decision is not None
    assert decision.evidence["sites"] == ["site-1"]


def test_windows_of_an_older_version_do_not_count(engine: sa.Engine) -> None:
    report(engine, EVERYWHERE, version=1)
    report(engine, EVERYWHERE, version=2)
    assert decide(engine, POLICY, now=0.0) is None


def test_two_monitors_and_one_that_starts_anew_find_the_same_evidence(engine: sa.Engine) -> None:
    """The state is the rows: deciding after every window and only at the end comes to the same numbers."""
    for _ in range(4):
        report(engine)
        assert decide(engine, POLICY, now=0.0) is None
    for _ in range(2):
        report(engine, EVERYWHERE)
    late = connect("sqlite://")
    for _ in range(4):
        report(late)
    for _ in range(2):
        report(late, EVERYWHERE)
    one, other = decide(engine, POLICY, now=0.0), decide(late, POLICY, now=0.0)
    assert one is not None and other is not None
    assert one.evidence == other.evidence
    late.dispose()


def test_used_windows_raise_no_second_alarm(engine: sa.Engine) -> None:
    policy = AlarmPolicy(cooldown_s=0)
    for _ in range(3):
        report(engine, EVERYWHERE)
    first = decide(engine, policy, now=0.0)
    assert first is not None
    alarm.claim(engine, first.decision, "run", now=1.0)
    alarm.finish(engine, first.decision, "version 2 is champion", now=2.0)
    report(engine, EVERYWHERE)
    assert decide(engine, policy, now=10.0) is None
    report(engine, EVERYWHERE)
    second = decide(engine, policy, now=10.0)
    assert second is not None
    assert second.evidence["windows"] == [4, 5]


def test_two_monitors_at_once_make_one_decision(engine: sa.Engine) -> None:
    for _ in range(2):
        report(engine, EVERYWHERE)
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: decide(engine, POLICY, now=0.0), range(16)))
    assert sum(decision is not None for decision in made) == 1


# -- what happened, and what it calls for ------------------------------------------------------------------------


def told(engine: sa.Engine, moved: dict[str, Any], windows: int = 2, **how: Any) -> alarm.Decision:
    for _ in range(windows):
        report(engine, moved, **how)
    decision = decide(engine, POLICY, label_budget=0.1, now=0.0)
    assert decision is not None
    return decision


def test_the_evidence_says_what_happened_in_a_sentence(engine: sa.Engine) -> None:
    one = dict.fromkeys(EVERYWHERE, ("brightness",))
    decision = told(engine, one)
    assert decision.sentence == (
        "brightness fell by 69% from 0.32 to 0.10 (7.1 x its threshold) at all 2 sites in windows 1-2, "
        "all else stable: camera or lighting"
    )
    column = decision.evidence["columns"]["brightness"]
    assert (column["value"], column["threshold"]) == (pytest.approx(1.42), 0.2)
    assert decision.evidence["label_budget"] == 0.1
    assert (decision.answer, decision.severity) == ("retrain", "critical")


def test_a_dark_site_is_named_and_is_less_than_critical(engine: sa.Engine) -> None:
    decision = told(engine, {"site-2": DARK})
    assert "at site-2 in windows 1-2; so did one more column: camera or lighting" in decision.sentence
    assert (decision.cause, decision.severity) == ("drift", "warning")


def test_answers_that_change_while_inputs_do_not_ask_for_labels_and_start_nothing(engine: sa.Engine) -> None:
    share = {"what": "the share of predictions of 3", "was": 0.1, "now": 0.9}
    decision = told(engine, {key: {"prediction": share} for key in EVERYWHERE})
    assert (decision.cause, decision.answer, decision.state) == ("label shift", "labels", "asked")
    assert alarm.pending(engine) == []
    assert "from 0.10 to 0.90" in decision.sentence


def test_other_pictures_in_the_same_light_are_content(engine: sa.Engine) -> None:
    decision = told(engine, dict.fromkeys(EVERYWHERE, ("embedding_distance",)))
    assert (decision.evidence["probable_cause"], decision.answer) == ("content", "retrain")


@pytest.mark.parametrize(
    "broken",
    [
        {"brightness": {"spread": 0.0}},
        {"brightness": {"now": 0.0}},
        {"contrast": {"what": "the share of missing contrast", "was": 0.0, "now": 0.8}},
    ],
)
def test_a_broken_camera_pages_a_person_and_bars_retraining_until_it_is_acknowledged(
    engine: sa.Engine, broken: dict[str, Any]
) -> None:
    decision = told(engine, {"site-2": broken})
    assert (decision.cause, decision.answer, decision.state) == (alarm.BROKEN, "person", "paged")
    assert decision.severity == "critical"
    assert alarm.pending(engine) == []
    assert alarm.record(engine, "drift", {}, 1.0, POLICY) is None
    assert not alarm.claim(engine, decision.decision, "a run")
    for _ in range(3):
        report(engine, {"site-2": broken})
    assert decide(engine, POLICY, now=2.0) is None  # it has been paged for already
    with pytest.raises(BadInput, match="--reason"):
        alarm.acknowledge(engine, decision.decision, " ")
    alarm.acknowledge(engine, decision.decision, "lens cap")
    assert alarm.decisions(engine)[0].outcome == "lens cap"
    assert alarm.record(engine, "drift", {}, 3.0, POLICY) is not None


def test_only_what_waits_for_a_person_can_be_acknowledged(engine: sa.Engine) -> None:
    with pytest.raises(Missing, match="no decision 7"):
        alarm.acknowledge(engine, 7, "why")
    number = alarm.record(engine, "drift", {}, 0.0, POLICY)
    assert number is not None
    with pytest.raises(BadInput, match="is waiting"):
        alarm.acknowledge(engine, number, "why")


def test_a_second_camera_that_breaks_is_paged_for_too(engine: sa.Engine) -> None:
    broken = {"brightness": {"spread": 0.0}}
    told(engine, {"site-2": broken})
    decision = told(engine, {"site-1": broken})
    assert decision.evidence["sites"] == ["site-1"]


def test_a_site_that_falls_silent_is_paged_for_once_and_does_not_bar_retraining(engine: sa.Engine) -> None:
    for _ in range(3):
        report(engine)
    report(engine, mix={"site-1": 100}, scopes=("overall", "site-1"))
    assert decide(engine, POLICY, now=0.0) is None
    report(engine, mix={"site-1": 100}, scopes=("overall", "site-1"))
    decision = decide(engine, POLICY, now=0.0)
    assert decision is not None
    assert (decision.cause, decision.evidence["sites"]) == ("silence", ["site-2"])
    assert "site-2 sent nothing in windows 4-5" in decision.sentence
    for _ in range(4):
        report(engine, mix={"site-1": 100}, scopes=("overall", "site-1"))
        assert decide(engine, POLICY, now=0.0) is None
    assert alarm.record(engine, "drift", {}, 1.0, POLICY) is not None


# -- known parts of the week -------------------------------------------------------------------------------------

NIGHT = Period.model_validate({"name": "night", "start": "22:00", "end": "06:00"})


def test_a_dark_night_that_is_declared_is_compared_with_other_nights(engine: sa.Engine) -> None:
    policy = AlarmPolicy(schedule=(NIGHT,))
    for day in range(8):
        for hour in (0, 11):  # noon and 23 o'clock
            night = hour == 11
            report(engine, EVERYWHERE if night else {}, at=AT_NOON + day * 86_400 + hour * 3600)
            assert decide(engine, policy, now=0.0) is None
    for hour in (0, 1):
        report(engine, EVERYWHERE, at=AT_NOON + 9 * 86_400 + hour * 3600)
    decision = decide(engine, policy, now=0.0)
    assert decision is not None  # a dark noon still is one


def test_an_ignored_period_is_no_evidence(engine: sa.Engine) -> None:
    policy = AlarmPolicy(schedule=(NIGHT.model_copy(update={"windows": "ignored"}),))
    for day in range(6):
        report(engine, EVERYWHERE, at=AT_NOON + day * 86_400 + 11 * 3600)
        assert decide(engine, policy, now=0.0) is None


@pytest.mark.parametrize(
    ("moment", "inside"),
    [
        (datetime(2026, 3, 6, 23), True),  # Friday evening
        (datetime(2026, 3, 7, 5, 59), True),
        (datetime(2026, 3, 7, 6), False),
        (datetime(2026, 3, 7, 23), False),  # Saturday's night is not declared
    ],
)
def test_a_night_belongs_to_the_day_on_which_it_starts(moment: datetime, inside: bool) -> None:
    period = Period.model_validate({"name": "n", "days": ["fri"], "start": "22:00", "end": "06:00"})
    assert period.holds(moment.timestamp()) == inside


def test_a_whole_day_is_from_midnight_to_midnight() -> None:
    weekend = Period.model_validate({"name": "weekend", "days": ["sat", "sun"]})
    assert [weekend.holds(datetime(2026, 3, day, 13).timestamp()) for day in (6, 7, 8, 9)] == [False, True, True, False]


def test_policies_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValidationError, match="memory_windows"):
        AlarmPolicy(memory_windows=10, persistence=8)
    with pytest.raises(ValidationError):
        AlarmPolicy(false_per_1000=0)
    with pytest.raises(ValidationError, match="http"):
        AlarmPolicy(webhook="ftp://somewhere")
