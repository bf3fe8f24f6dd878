"""The label queue: nothing lost, nothing asked twice, two people never at one row unless they are meant to be."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path

import sqlalchemy as sa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule
from tiny_sites import make_site

from pipelines.federated import votes
from pipelines.federated.queue import (
    DOUBTED,
    People,
    Wanted,
    enqueue,
    hand_over,
    open_rows,
    progress,
)
from pipelines.federated.site import OracleAnnotator
from pipelines.federated.site_tables import ANNOTATIONS, ITEMS, LEASES, PICTURES, UNREADABLE, VOTES, open_database
from pipelines.federated.store import SiteStore
from pipelines.federated.votes import LEASE_S, take, undo, verdict, vote

ROWS = [f"row-{i}" for i in range(8)]
PNGS = {row: row.encode() for row in ROWS}
PEOPLE = ["anna", "ben", "cem"]
CHOICES = st.sampled_from([UNREADABLE, 0, 1, 2])


def wanted(rows: list[str], wants: int = 1) -> list[Wanted]:
    return [Wanted(row, ROWS.index(row) % 2, "typical", wants) for row in rows]


class Desk(RuleBasedStateMachine):
    """Whatever people do, in whatever order, beside what a plain replay of the log says."""

    seen = Bundle("seen")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.store = SiteStore(Path(self.folder.name) / "site-1")
        self.database = open_database(self.store.root)
        self.now = 1000.0
        self.log: list[tuple[object, ...]] = []
        self.held: dict[tuple[int, str], float] = {}
        self.actions = 0

    def teardown(self) -> None:
        self.folder.cleanup()

    def items(self) -> dict[int, sa.Row]:  # type: ignore[type-arg]
        with self.database.connect() as connection:
            return {row.item: row for row in connection.execute(sa.select(ITEMS))}

    def replay(self) -> dict[int, dict[str, int]]:
        """What people have said, from the log alone: item → annotator → choice, in the order in which they came."""
        undone = {entry.undoes for entry in self.log}
        said: dict[int, dict[str, int]] = {}
        for entry in self.log:
            if entry.undoes is None and entry.vote not in undone:
                said.setdefault(entry.item, {})[entry.annotator] = entry.choice
        return said

    @rule(rows=st.sets(st.sampled_from(ROWS), min_size=1), wants=st.sampled_from([1, 1, 2]))
    def the_loop_asks(self, rows: set[str], wants: int) -> None:
        asked = wanted(sorted(rows), wants)
        before = self.items()
        enqueue(self.database, asked, PNGS)
        after = self.items()
        for row in rows:
            assert any(item.row_id == row and item.withdrawn_at is None for item in after.values())
        begun = self.replay()
        for number, item in before.items():
            if begun.get(number) or item.row_id in rows or item.reason == DOUBTED:
                assert after[number].withdrawn_at is None or item.withdrawn_at is not None
        enqueue(self.database, asked, PNGS)
        assert self.items() == after, "the same question again changed something"

    @rule(rows=st.sets(st.sampled_from(ROWS), min_size=1, max_size=3))
    def somebody_doubts(self, rows: set[str]) -> None:
        labels = self.store.annotations()
        enqueue(self.database, [Wanted(row, 0, DOUBTED) for row in sorted(rows)], PNGS, again=True)
        assert self.store.annotations() == labels

    def asked_anew(self, number: int) -> bool:
        items = self.items()
        others = [i for i in items.values() if i.row_id == items[number].row_id and i.withdrawn_at is None]
        return any(i.item != number and (i.label is None or i.item > number) for i in others)

    @rule(target=seen, who=st.sampled_from(PEOPLE))
    def sits_down(self, who: str) -> object:
        sheet = take(self.database, who, now=self.now)
        if sheet is None:
            return multiple()
        items, said = self.items(), self.replay()
        for each in sheet.items:
            item, own = items[each.item], said.get(each.item, {})
            assert item.label is None and item.withdrawn_at is None
            assert who not in own
            assert who not in (item.before_by or "").split(", ")
            others = {p for (i, p), until in self.held.items() if i == each.item and until > self.now and p != who}
            third = len(own) >= item.wants
            assert len(own) + len(others - set(own)) < item.wants + third, "more people than the item wants"
            assert sorted(each.votes) == (sorted(own.values()) if third else [])
            self.held[each.item, who] = self.now + LEASE_S
        return multiple(*(each.item for each in sheet.items))

    @rule(who=st.sampled_from(PEOPLE), choices=st.dictionaries(seen, CHOICES, min_size=1, max_size=4))
    def votes(self, who: str, choices: dict[int, int]) -> None:
        self.actions += 1
        action = str(self.actions)
        items, said = self.items(), self.replay()
        refused = vote(self.database, who, choices, action, now=self.now)
        once = self.entries()
        assert not set(vote(self.database, who, choices, action, now=self.now)) - set(refused)
        assert self.entries() == once, "a message that came twice was counted twice"
        fresh = {entry.item: entry.choice for entry in once[len(self.log) :]}
        for item, choice in choices.items():
            mine = said.get(item, {}).get(who)
            if item in refused:
                assert item not in fresh
                # Who was there first, with a sheet that is still theirs, is never refused.
                if mine is None and not self.asked_anew(item) and self.held.get((item, who), 0) > self.now:
                    assert items[item].label is not None or len(said.get(item, {})) >= items[item].wants
            else:
                assert fresh.get(item) == (None if mine == choice else choice)
                self.held.pop((item, who), None)
        for key in self.held:
            if key[1] == who and self.held[key] > self.now:
                self.held[key] = self.now + LEASE_S

    @rule(who=st.sampled_from(PEOPLE))
    def takes_back(self, who: str) -> None:
        standing = {entry.undoes for entry in self.log}
        own = [e for e in self.log if e.annotator == who and e.undoes is None and e.vote not in standing]
        own = [e for e in own if not self.asked_anew(e.item)]
        items = undo(self.database, who, now=self.now)
        assert items == (sorted(e.item for e in own if e.action == own[-1].action) if own else [])
        for item in items:
            self.held[item, who] = self.now + LEASE_S

    @rule(seconds=st.sampled_from([1.0, LEASE_S / 2, LEASE_S + 1]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    def entries(self) -> list[sa.Row]:  # type: ignore[type-arg]
        with self.database.connect() as connection:
            return list(connection.execute(sa.select(VOTES).order_by(VOTES.c.vote)))

    @invariant()
    def nothing_is_lost_and_nothing_is_there_twice(self) -> None:
        with self.database.connect() as connection:
            log = list(connection.execute(sa.select(VOTES).order_by(VOTES.c.vote)))
            items = list(connection.execute(sa.select(ITEMS).order_by(ITEMS.c.item)))
            kept = {row.row_id: row.label for row in connection.execute(sa.select(ANNOTATIONS))}
            shown = set(connection.scalars(sa.select(PICTURES.c.row_id)))
        assert log[: len(self.log)] == self.log, "an entry was changed or removed"
        self.log = log
        said = self.replay()
        expected: dict[str, int] = {}
        for item in items:
            assert item.label == verdict(said.get(item.item, {}), item.wants)
            if item.label is not None:
                expected[item.row_id] = item.label
        assert {row: label for row, label in expected.items() if label != UNREADABLE} == kept
        waiting = [item.row_id for item in items if item.label is None and item.withdrawn_at is None]
        assert len(waiting) == len(set(waiting)), "a row is asked for twice"
        assert {item.row_id for item in items} <= shown


Desk.TestCase.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)
TestDesk = Desk.TestCase


def test_verdicts() -> None:
    """One vote where one is wanted; two equal ones where two are; where they differ, the third person's word."""
    assert verdict({}, 1) is None
    assert verdict({"anna": 3}, 1) == 3
    assert verdict({"anna": 3}, 2) is None
    assert verdict({"anna": 3, "ben": 3}, 2) == 3
    assert verdict({"anna": 3, "ben": 5}, 2) is None
    assert verdict({"anna": 3, "ben": 5, "cem": 5}, 2) == 5
    assert verdict({"anna": 3, "ben": 5, "cem": 7}, 2) == 7
    assert verdict({"anna": UNREADABLE, "ben": UNREADABLE}, 2) == UNREADABLE


def test_two_who_differ_are_decided_by_a_third_who_sees_both_and_by_none_of_the_two(tmp_path: Path) -> None:
    database = open_database(tmp_path)
    enqueue(database, wanted(ROWS[:1], wants=2), PNGS)
    for who, choice in (("anna", 1), ("ben", 2)):
        sheet = take(database, who)
        assert sheet is not None
        assert sheet.items[0].votes == (), "the second must not see what the first said"
        assert not vote(database, who, {sheet.items[0].item: choice}, who)
    assert progress(database).disputed == 1
    assert take(database, "anna") is None
    assert take(database, "ben") is None
    third = take(database, "cem")
    assert third is not None
    assert third.items[0].votes == (1, 2)
    assert take(database, "dora") is None, "one adjudicator is enough"
    assert not vote(database, "cem", {third.items[0].item: 2}, "c")
    assert SiteStore(tmp_path).annotations() == {ROWS[0]: 2}
    assert vote(database, "anna", {third.items[0].item: 2}, "late") == {1: "a third person has decided it"}


def test_a_sheet_that_was_left_lying_comes_back_to_its_owner_and_later_to_anybody(tmp_path: Path) -> None:
    database = open_database(tmp_path)
    enqueue(database, wanted(ROWS[::2]), PNGS)
    first = take(database, "anna", now=0.0)
    assert first is not None
    assert take(database, "ben", now=LEASE_S - 1) is None
    again = take(database, "anna", now=LEASE_S - 1)
    assert again is not None
    assert again.items == first.items
    assert take(database, "ben", now=2 * LEASE_S - 2) is None, "sitting down again renewed it"
    other = take(database, "ben", now=2 * LEASE_S)
    assert other is not None
    assert other.items == first.items
    # The first one's vote still counts where nobody has been quicker, and does not where somebody has.
    assert vote(database, "anna", {first.items[0].item: 0}, "a", now=2 * LEASE_S) == {
        first.items[0].item: "another person has it before them"
    }


def test_people_at_one_desk_at_once_label_every_row_once(tmp_path: Path) -> None:
    """Six people race for the same sheets, each with connections of their own."""
    database = open_database(tmp_path)
    rows = [f"r{i}" for i in range(60)]
    enqueue(database, [Wanted(row, i // 4, "typical") for i, row in enumerate(rows)], dict.fromkeys(rows, b"png"))
    refused: list[str] = []

    def work(who: str) -> None:
        mine = open_database(tmp_path)
        while (sheet := take(mine, who)) is not None:
            said = vote(mine, who, {each.item: 1 for each in sheet.items}, f"{who}-{sheet.cluster}")
            refused.extend(said.values())

    people = [threading.Thread(target=work, args=(f"person-{i}",)) for i in range(6)]
    for person in people:
        person.start()
    for person in people:
        person.join(60)
    assert refused == []
    assert SiteStore(tmp_path).annotations() == dict.fromkeys(rows, 1)
    with database.connect() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(VOTES)) == len(rows)
        assert connection.scalar(sa.select(sa.func.count()).select_from(LEASES)) == 0


def test_an_oracle_works_off_the_same_queue_and_is_paid_once(tmp_path: Path) -> None:
    site, train, _ = make_site(tmp_path, "site-1", 12)
    rows = site.store.rows(train, "train").set_index("row_id")["png"]
    asked = [Wanted(row, 0, "typical") for row in rows.index[:5]]
    assert hand_over(site.store, People(), asked, rows, {0: list(rows.index[5:9])}) == (0, 5)
    oracle = OracleAnnotator()
    assert hand_over(site.store, oracle, asked, rows, {}) == (5, 0)
    assert hand_over(site.store, oracle, asked, rows, {}) == (0, 0)
    assert oracle.revealed == 5
    truth = site.store.truth([each.row_id for each in asked])
    assert site.store.annotations() == {row: int(label) for row, label in truth.items()}


def test_what_nobody_wants_any_more_is_withdrawn_unless_somebody_has_begun(tmp_path: Path) -> None:
    database = open_database(tmp_path)
    enqueue(database, wanted(ROWS[:3], wants=2), PNGS)
    assert not vote(database, "anna", {1: 0}, "a")
    enqueue(database, wanted(ROWS[3:5]), PNGS)
    assert open_rows(database, ROWS) == [ROWS[0], *ROWS[3:5]]
    enqueue(database, wanted(ROWS[:3], wants=2), PNGS)
    assert open_rows(database, ROWS) == ROWS[:3]
    # Somebody still has the old sheet on the screen: that work is not thrown away.
    assert not vote(database, "ben", {4: 2}, "late")
    assert SiteStore(tmp_path).annotations() == {ROWS[3]: 2}


def test_a_sheet_is_bounded_and_the_next_is_another(tmp_path: Path) -> None:
    database = open_database(tmp_path)
    rows = [f"r{i}" for i in range(100)]
    enqueue(database, [Wanted(row, 0, "typical") for row in rows], dict.fromkeys(rows, b"png"), {0: rows[:3]})
    first = take(database, "anna")
    assert first is not None
    second = take(database, "anna", beside=[each.item for each in first.items])
    assert second is not None
    assert len(first.items) == len(second.items) == votes.SHEET_ITEMS
    assert not {each.item for each in first.items} & {each.item for each in second.items}
    assert second.neighbours == tuple(rows[:3])
