"""Steps: every row once a pass, in an order of its seed, whoever else is in the chunk."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.draws import seeds_of
from models.population import Ragged
from pipelines.federated.steps import Steps, steps_of
from pipelines.federated.work import LocalWork

COUNTS = st.lists(st.integers(0, 17), min_size=1, max_size=6)


def rows_of(counts: list[int]) -> Ragged:
    own = np.array(counts, dtype=np.int64)
    starts = np.cumsum(own) - own
    x = torch.arange(max(int(own.sum()), 1), dtype=torch.float32)[:, None]
    return Ragged(x, torch.zeros(len(x), dtype=torch.int64), starts, own)


def seen(steps: Steps, site: int) -> list[list[int]]:
    """The rows of each of a site's batches, padding left out."""
    batches = []
    for step in range(int(steps.steps[site])):
        index = steps.index[site, step]
        real = index if steps.weight is None else index[steps.weight[site, step] > 0]
        batches.append(real.tolist())
    return batches


@given(counts=COUNTS, batch=st.integers(0, 7), epochs=st.integers(1, 3), seed=st.integers(0, 2**40))
@settings(max_examples=60, deadline=None)
def test_a_pass_sees_every_row_of_its_client_once(counts: list[int], batch: int, epochs: int, seed: int) -> None:
    rows = rows_of(counts)
    steps = steps_of(rows, LocalWork(epochs=epochs, batch_size=batch), seeds_of(seed, np.arange(len(counts))))
    for site, count in enumerate(counts):
        own = list(range(int(rows.starts[site]), int(rows.starts[site]) + count))
        batches = seen(steps, site)
        size = batch or max(counts) or 1
        per_epoch = -(-count // size)
        assert len(batches) == epochs * per_epoch
        for epoch in range(epochs):
            passed = batches[epoch * per_epoch : (epoch + 1) * per_epoch]
            assert sorted(row for one in passed for row in one) == own
            assert all(len(one) == size for one in passed[:-1])
        assert steps.examples[site] == count
        if steps.weight is not None:
            assert float(steps.weight[site].sum()) == epochs * count, "nothing behind a client's last step counts"


@given(counts=COUNTS, batch=st.integers(1, 7), updates=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_updates_are_as_many_steps_for_large_and_small_clients(counts: list[int], batch: int, updates: int) -> None:
    rows = rows_of(counts)
    steps = steps_of(rows, LocalWork(batch_size=batch, updates=updates), seeds_of(3, np.arange(len(counts))))
    for site, count in enumerate(counts):
        batches = seen(steps, site)
        assert len(batches) == (updates if count else 0)
        per_epoch = -(-count // batch)
        for start in range(0, len(batches) - per_epoch + 1, max(per_epoch, 1)):
            passed = [row for one in batches[start : start + per_epoch] for row in one]
            assert len(passed) == len(set(passed)) == count


@given(counts=st.lists(st.integers(1, 17), min_size=2, max_size=6), epochs=st.integers(1, 2))
@settings(max_examples=30, deadline=None)
def test_a_clients_order_does_not_depend_on_who_else_is_in_the_chunk(counts: list[int], epochs: int) -> None:
    rows, work, seeds = rows_of(counts), LocalWork(epochs=epochs, batch_size=4), seeds_of(5, np.arange(len(counts)))
    together = steps_of(rows, work, seeds)
    for site in range(len(counts)):
        alone = Ragged(rows.x, rows.y, rows.starts[site : site + 1], rows.counts[site : site + 1])
        own = steps_of(alone, work, seeds[site : site + 1])
        assert seen(own, 0) == seen(together, site)
