"""The history of rounds: a value, however much its copies share."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipelines.federated.plan import History, RoundRecord


def record(number: int) -> RoundRecord:
    return RoundRecord(number, 3, 2, 40.0, 0.5)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 99)), max_size=30))
def test_a_history_is_what_it_was_whatever_has_grown_from_it(growths: list[tuple[int, int]]) -> None:
    histories, wanted = [History()], [list[RoundRecord]()]
    for parent, number in growths:
        parent %= len(histories)
        histories.append(histories[parent].grown(record(number)))
        wanted.append([*wanted[parent], record(number)])
    for history, records in zip(histories, wanted, strict=True):
        assert list(history) == records and history == History(records) and len(history) == len(records)
        assert list(history[1:]) == records[1:] and history[-2:] == records[-2:]
        assert not records or history[-1] == records[-1]
