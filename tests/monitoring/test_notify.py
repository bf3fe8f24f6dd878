from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from listening import listener

from monitoring import alarm, notify
from monitoring.database import connect
from monitoring.policy import AlarmPolicy

EVIDENCE = {
    "answer": "person", "severity": "critical", "probable_cause": alarm.BROKEN, "sites": ["site-3"],
    "sentence": "brightness fell by 100% from 0.32 to 0.00 at site-3 in windows 3-4, all else stable: a broken camera",
}  # fmt: skip


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    made = connect(f"sqlite:///{tmp_path / 'log.db'}")
    alarm.record(made, alarm.BROKEN, EVIDENCE, 1000.0, AlarmPolicy())
    yield made
    made.dispose()


def tell(engine: sa.Engine, policy: AlarmPolicy, now: float = 1001.0) -> list[str]:
    return notify.deliver(engine, "digits", notify.channels(policy), now, pause_s=0.01)


def test_a_decision_goes_to_every_channel_once(engine: sa.Engine) -> None:
    with listener() as hook, listener() as people:
        policy = AlarmPolicy(webhook=f"http://{hook.address}/alarm", notify=(f"json://{people.address}/",))
        assert tell(engine, policy) == []
        assert tell(engine, policy) == []
        (posted,), (told,) = hook.heard, people.heard
    assert posted["decision"] == 1
    assert (posted["answer"], posted["severity"], posted["sites"]) == ("person", "critical", ["site-3"])
    assert "brightness fell by 100%" in told["message"]
    assert "fedloop alarms ack 1 --reason" in told["message"]
    assert told["title"] == "digits: critical, decision 1"


def test_a_receiver_that_stumbles_is_asked_again(engine: sa.Engine) -> None:
    with listener(answers=[503, 500]) as hook:
        assert tell(engine, AlarmPolicy(webhook=f"http://{hook.address}")) == []
        assert len(hook.heard) == 1


def test_one_that_is_down_holds_nothing_up_and_is_told_later(engine: sa.Engine) -> None:
    with listener(answers=[503] * 3) as hook, listener() as people:
        policy = AlarmPolicy(webhook=f"http://{hook.address}", notify=(f"json://{people.address}/",))
        (failure,) = tell(engine, policy)
        assert "decision 1 could not be told by webhook-" in failure
        assert "503" in failure
        assert len(people.heard) == 1
        alarm.record(engine, "silence", EVIDENCE | {"sites": []}, 1000.5, AlarmPolicy())
        assert tell(engine, policy) == []
        assert [each["decision"] for each in hook.heard] == [1, 2]
        assert len(people.heard) == 2


def test_an_address_never_stands_in_a_log_or_a_row(engine: sa.Engine) -> None:
    policy = AlarmPolicy(webhook="http://127.0.0.1:9/secret-token", notify=("no-such-scheme://secret-token",))
    failures = tell(engine, policy)
    assert len(failures) == 2
    assert not any("secret" in sentence for sentence in failures)
    assert not any("secret" in name for name in notify.channels(policy))


def test_yesterdays_decision_is_no_news(engine: sa.Engine) -> None:
    with listener() as hook:
        assert tell(engine, AlarmPolicy(webhook=f"http://{hook.address}"), now=1000.0 + 2 * notify.NEWS_S) == []
        assert hook.heard == []
