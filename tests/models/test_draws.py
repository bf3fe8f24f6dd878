"""Random numbers by their coordinates: the same in any company, and as random as they should be."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from models.draws import draw_seed, normals, permutations, sample, seeds_of, uniforms, words

SEEDS = st.integers(0, 2**63 - 1)


@given(seed=SEEDS, members=st.lists(st.integers(0, 2**40), min_size=1, max_size=9))
def test_a_member_draws_the_same_alone_and_among_others(seed: int, members: list[int]) -> None:
    together = words(seeds_of(seed, np.array(members)), 5)
    for place, member in enumerate(members):
        alone = words(seeds_of(seed, np.array([member])), 5)
        assert (together[place] == alone[0]).all()


@given(seed=SEEDS, start=st.integers(0, 2**40), count=st.integers(1, 20))
def test_a_stream_can_be_read_from_anywhere(seed: int, start: int, count: int) -> None:
    seeds = seeds_of(seed, np.arange(3))
    whole = words(seeds, count + 4, start)
    assert (words(seeds, count, start + 4) == whole[:, 4:]).all()


@given(seed=SEEDS, counts=st.lists(st.integers(0, 12), min_size=1, max_size=6))
def test_a_permutation_holds_every_number_below_its_count_once(seed: int, counts: list[int]) -> None:
    found = permutations(seeds_of(seed, np.arange(len(counts))), np.array(counts))
    assert found.shape == (len(counts), max(counts))
    for row, count in zip(found, counts, strict=True):
        assert sorted(row[:count]) == list(range(count))
        assert (row[count:] == -1).all()


def test_the_numbers_are_as_random_as_a_test_of_means_can_tell() -> None:
    seeds = seeds_of(1, np.arange(2000))
    flat, bell = uniforms(seeds, 50), normals(seeds, 50)
    assert flat.min() >= 0 and flat.max() < 1
    assert abs(flat.mean() - 0.5) < 0.005 and abs(flat.var() - 1 / 12) < 0.002
    assert abs(bell.mean()) < 0.02 and abs(bell.std() - 1) < 0.01
    assert abs(np.corrcoef(flat[:-1].ravel(), flat[1:].ravel())[0, 1]) < 0.02, "neighbouring members"
    assert abs(np.corrcoef(flat[:, :-1].ravel(), flat[:, 1:].ravel())[0, 1]) < 0.02, "neighbouring words"
    first = permutations(seeds_of(2, np.arange(6000)), np.full(6000, 3))
    _, times = np.unique(first, axis=0, return_counts=True)
    assert len(times) == 6 and abs(times - 1000).max() < 150, "some orders come more often than others"


def test_seeds_differ_by_every_part() -> None:
    assert draw_seed("a", 1) != draw_seed("a", 2) != draw_seed("b", 2)
    assert draw_seed("cohort", 0, 1) == draw_seed("cohort", 0, 1)


@given(seed=st.integers(0, 2**63 - 1), size=st.integers(1, 200), data=st.data())
def test_a_sample_is_so_many_different_members(seed: int, size: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, size))
    found = sample(seed, size, count)
    assert len(found) == count == len(set(found.tolist()))
    assert not count or (found.min() >= 0 and found.max() < size and (np.diff(found) > 0).all())


def test_every_member_and_every_pair_is_sampled_as_often_as_any_other() -> None:
    for count in (3, 5):
        times = np.zeros((8, 8))
        for seed in range(4000):
            found = sample(seed, 8, count)
            times[np.ix_(found, found)] += 1
        share = times / 4000
        assert np.abs(np.diag(share) - count / 8).max() < 0.04
        assert np.abs(share[~np.eye(8, dtype=bool)] - count * (count - 1) / 56).max() < 0.04
