"""Cases are named by their picture and only ever appended to."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import sqlalchemy as sa
from fresh_logs import Databases
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import BadInput
from models.images import content_hash, encode_png
from monitoring.cases import (
    Case,
    Finding,
    Submission,
    UnknownCase,
    find,
    findings,
    history,
    keep_findings,
    live,
    page,
    submit,
    withdraw,
)
from monitoring.database import CASES
from monitoring.traffic import TrafficLog


def picture(number: int) -> bytes:
    return encode_png(np.random.default_rng(number).integers(0, 256, size=(8, 8, 1), dtype=np.uint8))


NAMES = [content_hash(picture(number)) for number in range(3)]


@pytest.fixture
def log(databases: Databases) -> Iterator[TrafficLog]:
    with databases.log() as opened:
        yield opened


def rows_of(log: TrafficLog) -> list[tuple[object, ...]]:
    with log.engine.connect() as connection:
        return [tuple(row) for row in connection.execute(sa.select(CASES).order_by(CASES.c.seq))]


said = st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["cat", "dog", None])), max_size=12)


@given(said=said)
@settings(max_examples=15, deadline=None)
def test_versions_are_appended_the_newest_counts_and_the_same_again_changes_nothing(
    databases: Databases, said: list[tuple[int, str | None]]
) -> None:
    """Of each picture someone says a class, or withdraws it (None)."""
    with databases.log() as log:
        expected: dict[str, list[tuple[str, bool]]] = {}  # what each case's versions should say
        for number, label in said:
            before, name = rows_of(log), NAMES[number]
            own = expected.setdefault(name, [])
            for _ in range(2):  # the second time it is known
                if label is None:
                    if not own:
                        with pytest.raises(UnknownCase):
                            withdraw(log.engine, name, "wrong")
                        continue
                    taken = withdraw(log.engine, name, "wrong")
                    wanted = (own[-1][0], True)
                else:
                    taken = submit(log, [Submission(picture(number), label)])[0]
                    wanted = (label, False)
                if own and own[-1] == wanted:
                    assert taken.status == "already"
                else:
                    status = "withdrawn" if label is None else "reopened" if own and own[-1][1] else "corrected"
                    assert taken.status == (status if own else "new")
                    own.append(wanted)
                assert (taken.case.case_id, taken.case.version) == (name, len(own))
            after = rows_of(log)
            assert after[: len(before)] == before
        for name, versions in expected.items():
            kept = history(log.engine, name)
            assert [(case.expected, case.withdrawn) for case in kept] == versions
            assert [case.version for case in kept] == list(range(1, len(versions) + 1))
        alive = {name: own[-1][0] for name, own in expected.items() if own and not own[-1][1]}
        assert {case.case_id: case.expected for case in live(log.engine)} == alive
        assert all(content_hash(log.image(name)) == name for name in alive)


def test_a_correction_says_what_was_expected_before(log: TrafficLog) -> None:
    submit(log, [Submission(picture(0), "cat", submitter="Ana")])
    taken = submit(log, [Submission(picture(0), "dog")])[0]
    assert "until now 'cat' was expected of this picture (version 1, by Ana); from now on 'dog'" in taken.sentence
    withdraw(log.engine, NAMES[0], "unsharp")
    assert "had been withdrawn" in submit(log, [Submission(picture(0), "dog")])[0].sentence
    assert [case.note for case in history(log.engine, NAMES[0])] == ["", "", "unsharp", ""]


def test_who_writes_the_same_version_at_once_makes_two_of_them(log: TrafficLog) -> None:
    classes = [f"class-{number % 4}" for number in range(32)]

    def one(label: str) -> Case:
        return submit(log, [Submission(picture(0), label)])[0].case

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(one, classes))
    kept = history(log.engine, NAMES[0])
    assert [case.version for case in kept] == list(range(1, len(kept) + 1))
    assert all(one.expected != other.expected for one, other in itertools.pairwise(kept))
    assert {(case.version, case.expected) for case in made} <= {(case.version, case.expected) for case in kept}


def test_pages_show_every_case_once_newest_first(log: TrafficLog) -> None:
    submit(log, [Submission(picture(number), "cat") for number in range(7)])
    submit(log, [Submission(picture(2), "dog")])
    seen: list[Case] = []
    before = None
    while found := page(log.engine, before, 3):
        seen += found
        before = found[-1].seq
    assert len({case.case_id for case in seen}) == len(seen) == 7
    assert [case.seq for case in seen] == sorted((case.seq for case in seen), reverse=True)
    assert (seen[0].case_id, seen[0].version) == (NAMES[2], 2)


def test_a_case_is_found_by_the_first_digits_that_name_it_alone(log: TrafficLog) -> None:
    submit(log, [Submission(picture(number), "cat") for number in range(40)])
    assert find(log.engine, NAMES[1][:12]).case_id == NAMES[1]
    names = sorted(case.case_id for case in live(log.engine))
    shared = next(a[0] for a, b in itertools.pairwise(names) if a[0] == b[0])
    with pytest.raises(BadInput, match="several cases begin"):
        find(log.engine, shared)
    for nobody in ("", "%", "zz"):
        with pytest.raises(UnknownCase, match="no case"):
            find(log.engine, nobody)


def test_a_withdrawal_takes_a_reason(log: TrafficLog) -> None:
    submit(log, [Submission(picture(0), "cat")])
    with pytest.raises(BadInput, match="for a reason"):
        withdraw(log.engine, NAMES[0], "  ")


def test_findings_are_kept_once_and_a_cause_is_added_not_written_over(log: TrafficLog) -> None:
    submit(log, [Submission(picture(0), "cat"), Submission(picture(1), "cat")])
    found = [Finding(NAMES[0], 1, 3, False), Finding(NAMES[1], 1, 3, True), Finding(NAMES[0], 1, 4, True)]
    for _ in range(2):
        keep_findings(log.engine, found)
        keep_findings(log.engine, [Finding(NAMES[0], 1, 3, False, "unseen")])
    kept = [(each.case_id, each.model_version, each.passed, each.cause) for each in findings(log.engine, 3)]
    assert kept == [(NAMES[0], 3, False, None), (NAMES[1], 3, True, None), (NAMES[0], 3, False, "unseen")]
    assert len(findings(log.engine, case_id=NAMES[0])) == 3
