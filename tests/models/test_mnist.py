"""MNIST is dealt as McMahan et al. dealt it, to models of the paper's very sizes."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from models import mnist
from models.errors import BadInput, Missing
from models.fleet_task import find_fleet_task

here = pytest.mark.skipif(not os.environ.get("FEDLOOP_DATA"), reason="needs mnist in FEDLOOP_DATA")
CLIENTS = np.arange(100)


def test_the_models_have_the_papers_numbers_of_parameters() -> None:
    for build, size in ((mnist.two_nn, 199_210), (mnist.cnn, 1_663_370)):
        model = build()
        assert sum(parameter.numel() for parameter in model.parameters()) == size
        assert model(torch.zeros(3, 1, 28, 28)).shape == (3, 10)


@here
def test_clients_of_the_even_partition_hold_600_digits_of_every_kind() -> None:
    population = mnist.iid()
    assert (population.counts(CLIENTS) == 600).all()
    kinds = [len(torch.unique(population.rows(CLIENTS).client(i)[1])) for i in range(100)]
    assert min(kinds) == 10


@here
def test_clients_of_the_pathological_partition_hold_two_shards() -> None:
    population = mnist.shards()
    assert (population.counts(CLIENTS) == 600).all()
    # A shard of 300 lies across the border between two labels in at most nine cases of 200.
    kinds = np.array([len(torch.unique(population.rows(CLIENTS).client(i)[1])) for i in range(100)])
    assert (kinds <= 2).sum() >= 91
    assert kinds.max() <= 4
    assert torch.equal(torch.sort(population.y).values, torch.sort(mnist.iid().y).values)


@here
def test_writers_hold_their_own_digits() -> None:
    population = mnist.by_writer()
    counts = population.counts(np.arange(population.size))
    assert (population.size, counts.min(), counts.max(), np.median(counts)) == (539, 19, 131, 116)
    assert counts.sum() == mnist.DIGITS
    assert mnist.by_writer(40, seed=1).size == 40


@here
def test_a_seed_deals_the_same_digits_again_and_another_deals_others() -> None:
    for deal in (mnist.iid, mnist.shards):
        assert torch.equal(deal(100, 1).y, deal(100, 1).y)
        assert not torch.equal(deal(100, 1).y, deal(100, 2).y)


@here
def test_numbers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(BadInput, match="equal parts"):
        mnist.iid(7)
    with pytest.raises(BadInput, match="539 writers"):
        mnist.by_writer(540)


@here
def test_the_partitions_are_named_as_tasks() -> None:
    for name in ("CNN_IID", "CNN_SHARDS", "TWO_NN_IID", "TWO_NN_SHARDS"):
        assert find_fleet_task(f"models.mnist:{name}").population(100, 0).size == 100


def test_without_the_file_it_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("FEDLOOP_DATA", str(tmp_path))
    mnist.load.cache_clear()
    with pytest.raises(Missing, match=r"mnist\.npz is neither there nor in its folder mnist/"):
        mnist.iid()
