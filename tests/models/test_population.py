"""Populations: rows dealt to clients, nothing lost and nothing twice, and no copy made to read them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from models.population import partition


@given(owners=st.lists(st.integers(0, 6), min_size=1, max_size=60))
def test_every_row_is_its_owners_and_nobody_elses(owners: list[int]) -> None:
    owner = np.array(owners)
    x, y = np.arange(len(owner), dtype=np.float32)[:, None], np.arange(len(owner))
    dealt = partition(x, y, owner)
    assert dealt.size == owner.max() + 1
    assert dealt.counts(np.arange(dealt.size)).sum() == len(owner)
    rows = dealt.rows(np.arange(dealt.size))
    for client in range(dealt.size):
        own_x, own_y = rows.client(client)
        assert own_y.tolist() == np.flatnonzero(owner == client).tolist()
        assert own_x[:, 0].tolist() == own_y.tolist()


def test_a_clients_rows_are_a_view() -> None:
    dealt = partition(np.zeros((6, 2), dtype=np.uint8), np.zeros(6, dtype=np.int64), np.array([1, 0, 1, 0, 1, 0]))
    rows = dealt.rows(np.array([1, 0]))
    assert rows.x.data_ptr() == dealt.x.data_ptr()
    own, _ = rows.client(0)
    assert own.data_ptr() == dealt.x.data_ptr() + 3 * 2
    assert len(dealt.held_out(np.array([0]))) == 1 and dealt.held_out(np.array([0])).counts[0] == 0
