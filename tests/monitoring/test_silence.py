from __future__ import annotations

import uuid

import sqlalchemy as sa
from fresh_logs import fresh_log

from monitoring.database import PREDICTIONS, WINDOWS
from monitoring.findings import MonitorPolicy
from monitoring.habit import Habit, Past, SiteTold, read_habit
from monitoring.silence import Silence, listen, open_silences
from monitoring.traffic import TrafficLog

POLICY = MonitorPolicy()
HOUR_S, DAY_S = 3600.0, 86_400.0


def send(log: TrafficLog, site: str, *moments: float) -> None:
    """Rows of a site in the log, in this order."""
    nothing = {"model_version": 1, "image_hash": "", "prediction": 0, "confidence": 1.0, "probabilities": []}
    nothing |= dict.fromkeys(("brightness", "contrast", "sharpness", "saturation", "noise"), 0.0)
    with log.engine.begin() as connection:
        rows = [nothing | {"prediction_id": str(uuid.uuid4()), "site": site, "at": at} for at in moments]
        connection.execute(sa.insert(PREDICTIONS), rows)


def habit(gap_s: float, days: float, **shares: int) -> Habit:
    """Hourly windows up to moment 0; per site so many rows of each, and that longest pause."""
    ends = [-hour * HOUR_S for hour in range(int(24 * days), -1, -1)]
    return Habit(
        [Past(end, {s: SiteTold(rows, end - HOUR_S, end, gap_s, 0) for s, rows in shares.items()}) for end in ends]
    )


def heard(log: TrafficLog, known: Habit, now: float) -> tuple[list[str], list[str]]:
    """The sites whose silence began and ended with a look at that moment."""
    began, ended = listen(log.engine, known, POLICY, now)
    return [each.site for each in began], [each.site for each in ended]


def test_a_site_that_stops_while_the_others_go_on_is_noticed_although_no_window_closes_with_its_rows() -> None:
    known = habit(120.0, 0.25, a=100, b=100)
    with fresh_log() as log:
        send(log, "a", 0.0)
        send(log, "b", *(10.0 * i for i in range(90)))
        assert heard(log, known, 899.0) == ([], [])  # quiet, but not yet for a quarter of an hour
        assert heard(log, known, 910.0) == (["a"], [])
        (silence,) = open_silences(log.engine)
        assert silence.sentence == (
            "a has sent nothing for 15 minutes, and its longest pause so far was 2 minutes; "
            "by its share of the traffic 90 rows are missing"
        )


def test_a_silence_is_told_once_ends_with_the_next_row_and_may_come_again() -> None:
    known = habit(120.0, 2, a=100, b=100)
    with fresh_log() as log:
        send(log, "a", 0.0)
        send(log, "b", 0.0, 1900.0)
        assert heard(log, known, 1900.0) == (["a"], [])
        assert heard(log, known, 2000.0) == ([], [])
        send(log, "a", 2100.0)
        assert heard(log, known, 2110.0) == ([], ["a"])
        assert open_silences(log.engine) == []
        assert heard(log, known, 2100.0 + 1900.0)[0] == ["a", "b"]


def test_nights_are_no_silence_once_one_was_seen() -> None:
    with fresh_log() as log:
        send(log, "a", 0.0)
        send(log, "b", 0.0)
        assert heard(log, habit(600.0, 0.5, a=100, b=100), 14 * HOUR_S) == ([], [])  # half a day is known: nobody says
        assert heard(log, habit(14 * HOUR_S, 3, a=100, b=100), 14 * HOUR_S) == ([], [])
        assert heard(log, habit(14 * HOUR_S, 3, a=100, b=100), 43 * HOUR_S)[0] == ["a", "b"]


def test_a_site_that_sends_seldom_is_given_its_time() -> None:
    known = habit(1200.0, 1.5, a=2, b=198)
    with fresh_log() as log:
        send(log, "a", 0.0)
        send(log, "b", *(float(i) for i in range(3000)))
        assert heard(log, known, 3500.0) == ([], [])
        assert heard(log, known, 3700.0) == (["a"], [])


def test_a_site_that_the_habit_forgot_is_no_longer_waited_for() -> None:
    with fresh_log() as log:
        send(log, "a", 0.0)
        send(log, "b", 0.0, 3000.0)
        assert heard(log, habit(60.0, 2, a=100, b=100), 3000.0)[0] == ["a"]
        assert heard(log, habit(60.0, 2, b=100), 3010.0) == ([], ["a"])


def test_a_clock_that_jumps_back_is_no_silence() -> None:
    with fresh_log() as log:
        send(log, "a", 5000.0)
        assert heard(log, habit(60.0, 2, a=100), 1000.0) == ([], [])


def test_two_monitors_that_listen_at_once_tell_it_once() -> None:
    known = habit(60.0, 2, a=100, b=100)
    with fresh_log() as log:
        send(log, "a", 0.0)
        send(log, "b", 0.0, 3000.0)
        told = [silence for _ in range(2) for silence in listen(log.engine, known, POLICY, 3000.0)[0]]
        assert [type(each) for each in told] == [Silence]


def test_the_habit_is_read_from_the_newest_windows_and_passes_over_what_told_less() -> None:
    with fresh_log() as log:
        told = {"a": {"rows": 5, "first_at": 0.0, "last_at": 9.0, "longest_gap_s": 3.0, "duplicates": 1}}
        with log.engine.begin() as connection:
            for number, evidence in enumerate(({"sites": told}, {"notes": []}, {"sites": told}, {"sites": told})):
                row = {"from_seq": number, "to_seq": number + 1, "rows": 5, "started_at": 0.0, "ended_at": number}
                row |= {"model_version": 1, "odd": 0, "evidence": evidence}
                connection.execute(sa.insert(WINDOWS), row)
        known = read_habit(log.engine, 3)
        assert [past.ended_at for past in known.past] == [2.0, 3.0]
        assert known.past[0].sites == {"a": SiteTold(5, 0.0, 9.0, 3.0, 1)}
        assert known.last_at("a") == 9.0
        assert known.last_at("b") is None
