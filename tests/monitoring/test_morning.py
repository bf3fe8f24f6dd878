from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from fresh_logs import fresh_log

from monitoring import moves
from monitoring.database import DECISIONS, HISTOGRAM_WINDOWS, PROMOTIONS, SILENCES, WINDOWS
from monitoring.morning import how_things_stand, moment

HOUR_S = 3600.0
DARK = {
    "overall": {"rows": 250, "odd": False, "worst": 0.8, "columns": {}},
    "site-3": {
        "rows": 50,
        "odd": True,
        "worst": 7.1,
        "columns": {"brightness": {"what": "brightness", "was": 0.32, "now": 0.1, "ratio": 7.1}},
    },
}


def evidence(dark: bool = False, quality: str = "") -> dict[str, Any]:
    finding = {"monitor": "duplicates", "scope": "site-1", "value": 0.9, "odd": True, "sentence": quality}
    scopes = DARK if dark else {"overall": DARK["overall"]}
    return {"scopes": scopes, "mix": {"site-1": 1, "site-3": 1}, "quality": [finding] if quality else []}


def report(connection: sa.Connection, number: int, dark: bool = False, quality: str = "") -> None:
    row = {"from_seq": number, "to_seq": number + 1, "rows": 250, "model_version": 2, "odd": int(dark)}
    row |= {"started_at": number * HOUR_S, "ended_at": (number + 1) * HOUR_S}
    connection.execute(sa.insert(WINDOWS), row | {"evidence": evidence(dark, quality)})


def test_nothing_is_known_before_the_first_window() -> None:
    with fresh_log() as log:
        morning = how_things_stand(log.engine)
        assert (morning.headline, morning.amiss, morning.done, morning.version) == (
            *("No window of traffic is complete yet", (), ()),
            None,
        )


def test_it_says_since_when_all_is_well() -> None:
    with fresh_log() as log, log.engine.connect() as connection:
        for number in range(1, 6):
            report(connection, number, dark=number == 2)
        connection.commit()
        morning = how_things_stand(log.engine)
        assert morning.headline == f"Healthy since {moment(3 * HOUR_S)} (the last 3 windows are as expected)"
        assert (morning.amiss, morning.version) == ((), 2)


def test_it_says_since_when_it_is_not_and_which_site_and_column() -> None:
    with fresh_log() as log, log.engine.connect() as connection:
        report(connection, 1)
        report(connection, 2, quality="site-1: 9 of 10 pictures came before")
        report(connection, 3, dark=True, quality="site-1: 8 of 10 pictures came before")
        connection.commit()
        morning = how_things_stand(log.engine)
        assert morning.headline == f"Not as expected since {moment(2 * HOUR_S)} (the last 2 windows)"
        assert morning.amiss == (
            "brightness is 0.10 and was 0.32 (7.1 x its threshold) at site-3",
            "site-1: 8 of 10 pictures came before",
        )


def test_a_silent_site_and_odd_histograms_are_no_good_morning_though_every_window_is_fine() -> None:
    with fresh_log() as log, log.engine.connect() as connection:
        report(connection, 5)
        silence = {
            "site": "site-9",
            "since": 4 * HOUR_S,
            "noticed_at": 5 * HOUR_S,
            "sentence": "site-9 has sent nothing",
        }
        connection.execute(sa.insert(SILENCES), silence)
        connection.commit()
        morning = how_things_stand(log.engine)
        assert morning.headline == f"Not as expected since {moment(4 * HOUR_S)} (a site is silent)"
        row = {"model_version": 2, "turn": 1, "at": HOUR_S, "rows": 9, "odd": 1, "evidence": evidence(dark=True)}
        connection.execute(sa.insert(HISTOGRAM_WINDOWS), row)
        connection.commit()
        morning = how_things_stand(log.engine)
        assert "(the last of the histograms)" in morning.headline
        assert morning.amiss[0] == "site-9 has sent nothing"
        assert morning.amiss[1].endswith("at site-3, by the sites' histograms")


def test_what_was_done_is_told_newest_first_with_where_to_read_more() -> None:
    with fresh_log() as log, log.engine.connect() as connection:
        connection.execute(sa.insert(PROMOTIONS), {"at": 1.0, "version": 1, "previous": None, "reason": "bootstrap"})
        decided = {"cause": "drift", "evidence": {"sentence": "dark at site-3"}, "created_at": 2.0, "state": "done"}
        decided |= {"flow_run_id": "run-7", "updated_at": 4.0, "outcome": "version 2 is champion"}
        connection.execute(sa.insert(DECISIONS), decided)
        connection.execute(sa.insert(PROMOTIONS), {"at": 3.0, "version": 2, "previous": 1, "reason": "drift: passed"})
        connection.execute(sa.insert(PROMOTIONS), {"at": 6.0, "version": 1, "previous": 2, "reason": "rolled back"})
        silence = {"site": "a", "since": 0.0, "noticed_at": 5.0, "ended_at": 7.0, "sentence": "a has sent nothing"}
        connection.execute(sa.insert(SILENCES), silence)
        connection.commit()
        done = how_things_stand(log.engine).done
    assert [each.sentence for each in done] == [
        "a is no longer silent",
        "version 1 serves instead of 2: rolled back",
        "a has sent nothing",
        "decision 1 done: version 2 is champion",
        "version 2 serves instead of 1: drift: passed",
        "decision 1: dark at site-3",
        "version 1 serves: bootstrap",
    ]
    assert [each.flow_run_id for each in done if each.flow_run_id] == ["run-7"]
    assert [each.version for each in done if each.version] == [1, 2, 1]


@pytest.mark.parametrize("windows", [1, 300])
def test_it_reads_no_more_than_the_newest_windows(windows: int) -> None:
    with fresh_log() as log, log.engine.connect() as connection:
        for number in range(windows):
            report(connection, number)
        connection.commit()
        assert f"(the last {min(windows, 200)} windows" in how_things_stand(log.engine).headline


def test_a_version_on_its_way_is_told_once_a_step_and_who_serves_by_the_promotions() -> None:
    with fresh_log() as log:
        for step in ("shadow", "canary", "champion", "settled"):
            assert moves.write(log.engine, 7, step, "better")
        told = [(each.sentence, each.version) for each in how_things_stand(log.engine).done]
    assert sorted(told) == [
        ("version 7 goes into canary: better", 7),
        ("version 7 goes into shadow: better", 7),
        ("version 7 is settled: better", 7),
    ]
