"""Doubted labels: one list whoever doubts, other people are asked, and training learns what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny_sites import LABELLING, make_site

from models.errors import BadInput
from pipelines.federated.doubts import Doubt, ask_again, doubt, doubts
from pipelines.federated.jobs import SpreadJob
from pipelines.federated.queue import DOUBTED, People, Wanted, hand_over
from pipelines.federated.site import Site
from pipelines.federated.site_tables import UNREADABLE
from pipelines.federated.votes import settle, take, undo, vote


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Of its six rows anna has labelled the first three, as 0, 1 and 2."""
    made, train, _ = make_site(tmp_path, "site-1", 6)
    rows = made.store.rows(train, "train").set_index("row_id")["png"]
    hand_over(made.store, People(), [Wanted(row, 0, "typical") for row in rows.index[:3]], rows, {})
    assert settle(made.store.database, {row: i for i, row in enumerate(rows.index[:3])}, "anna") == 3
    return made


def names(site: Site) -> list[str]:
    return list(site.store.rows([each.id for each in site.store.manifests()], "train")["row_id"])


def test_both_lists_are_read_as_one_the_least_supported_first(site: Site) -> None:
    a, b, c, d = names(site)[:4]
    doubt(site.store, "labelling", [Doubt(a, 0, 1, 0.4), Doubt(b, 1, 2, 0.3)])
    doubt(site.store, "diagnosis", [Doubt(a, 0, 2, 0.1), Doubt(d, 2, 0, 0.2)])
    assert doubts(site.store) == [Doubt(a, 0, 2, 0.1), Doubt(d, 2, 0, 0.2), Doubt(b, 1, 2, 0.3)]
    doubt(site.store, "diagnosis", [Doubt(c, 0, 2, 0.0)])
    assert [each.row_id for each in doubts(site.store)] == [b, a], "c is labelled 2 by now, and the rest was replaced"
    ask_again(site.store, [b])
    assert settle(site.store.database, {b: 1}, "ben") == 1
    assert [each.row_id for each in doubts(site.store)] == [a], "somebody has looked at b, and found it right"


def test_a_second_opinion_is_another_persons_and_replaces_the_label_only_once_it_is_settled(site: Site) -> None:
    database, (first, *_, spread) = site.store.database, names(site)[:4]
    assert ask_again(site.store, [first, spread]) == 2
    assert ask_again(site.store, [first, spread]) == 0
    said = site.store.annotations()
    mine = take(database, "anna")
    assert mine is not None
    assert [each.row_id for each in mine.items] == [spread], "the other label is hers"
    sheet = take(database, "ben")
    assert sheet is not None
    assert [each.row_id for each in sheet.items] == [first]
    assert sheet.reason == DOUBTED
    assert site.store.annotations() == said
    assert not vote(database, "ben", {sheet.items[0].item: 2}, "b")
    assert site.store.annotations() == said | {first: 2}
    undo(database, "ben")
    assert site.store.annotations() == said
    vote(database, "ben", {sheet.items[0].item: said[first]}, "c")
    assert ask_again(site.store, [first]) == 0, "it had its second opinion"
    with pytest.raises(BadInput, match="no training row nowhere"):
        ask_again(site.store, ["nowhere"])


def test_a_labelling_step_does_not_withdraw_what_is_doubted(site: Site) -> None:
    rows = names(site)
    pictures = site.store.rows([each.id for each in site.store.manifests()], "train").set_index("row_id")["png"]
    ask_again(site.store, [rows[0], rows[3]])
    hand_over(site.store, People(), [Wanted(rows[5], 0, "typical")], pictures, {})
    sheet = take(site.store.database, "ben")
    assert sheet is not None
    assert ask_again(site.store, [rows[0], rows[3]]) == 0


def test_the_next_training_learns_what_was_said_last(site: Site) -> None:
    rows = names(site)
    site.store.write_labels(LABELLING, pd.DataFrame(
        {"row_id": rows[:5], "label": [0, 1, 2, 0, 1], "weight": [1.0, 1.0, 1.0, 0.3, 0.3], "how": "bought"}
    ))  # fmt: skip
    ask_again(site.store, [rows[0], rows[3], rows[4]])
    assert settle(site.store.database, {rows[0]: 2, rows[3]: 1, rows[4]: UNREADABLE}, "ben") == 3
    # The next labelling is of other rows: here of one.
    centroids, histogram = np.zeros((1, 2), dtype=np.float16), np.zeros((1, 3), dtype=np.int64)
    site.store.write_space("new", [rows[5]], np.zeros((1, 2), dtype=np.float32))
    limits = {"weight": 0.3, "confidence": 0.6, "check": 0.6, "seed": 0}
    answer = site.answer(SpreadJob("next", "new", "none", centroids, histogram, np.ones(1, np.float32), **limits))
    assert vars(answer)["bought"] == 0
    ids = tuple(each.id for each in site.store.manifests())
    before = site.labelled_rows((LABELLING,), ids, ())
    assert before.labels.tolist() == [0, 1, 2, 0, 1], "what was learned once is learned again, to the bit"
    after = site.labelled_rows((LABELLING, "next"), ids, ())
    assert after.labels.tolist() == [2, 1, 2, 1], "the last one cannot be read"
    assert after.weights.tolist() == [1.0] * 4
