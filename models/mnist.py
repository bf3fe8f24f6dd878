"""MNIST as McMahan et al. dealt it: "Communication-Efficient Learning of Deep Networks from Decentralized Data" (2017).

Its two models (section 3), its two partitions of 60,000 digits over 100 clients, and one that is real: who wrote them.
The official test set judges. x stays uint8 [rows, 1, 28, 28]; whoever computes scales it to [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models.datasets import read_arrays
from models.draws import draw_seed, permutations, seeds_of
from models.errors import BadInput
from models.fleet_files import fleet_file
from models.fleet_task import FleetTask
from models.population import Partition, Population, partition
from models.scores import Scores, class_quality, outputs_of

DIGITS, CLIENTS, WRITERS = 60_000, 100, 539


@dataclass(frozen=True)
class Mnist:
    """x: uint8 [n, 1, 28, 28]; y: int64 [n]; writer: 0 to 538, whose hand it is (QMNIST)."""

    x: NDArray[np.uint8]
    y: NDArray[np.int64]
    writer: NDArray[np.int64]
    test_x: torch.Tensor
    test_y: torch.Tensor


@cache
def load() -> Mnist:
    arrays = read_arrays(fleet_file("mnist.npz"))
    _, writer = np.unique(arrays["writer_train"], return_inverse=True)
    return Mnist(
        x=arrays["x_train"][:, None],
        y=arrays["y_train"].astype(np.int64),
        writer=writer.astype(np.int64),
        test_x=torch.from_numpy(arrays["x_test"][:, None]),
        test_y=torch.from_numpy(arrays["y_test"].astype(np.int64)),
    )


def two_nn() -> nn.Sequential:
    """The paper's 2NN: 199,210 parameters."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 200),
        nn.ReLU(),
        nn.Linear(200, 200),
        nn.ReLU(),
        nn.Linear(200, 10),
    )


def cnn() -> nn.Sequential:
    """The paper's CNN: 1,663,370 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 512),
        nn.ReLU(),
        nn.Linear(512, 10),
    )


def iid(clients: int = CLIENTS, seed: int = 0) -> Partition:
    """The digits shuffled and dealt in equal parts: 600 each for 100 clients."""
    _refuse_uneven(clients)
    return _dealt(_shuffled(DIGITS, "iid", seed), clients)


def shards(clients: int = CLIENTS, seed: int = 0, shards: int = 2) -> Partition:
    """The digits sorted by label, cut into shards of equal size, so many to each client: most have two digits only."""
    _refuse_uneven(clients * shards)
    by_label = np.argsort(load().y, kind="stable").reshape(clients * shards, -1)
    return _dealt(by_label[_shuffled(clients * shards, "shards", seed)].reshape(-1), clients)


def by_writer(clients: int = WRITERS, seed: int = 0) -> Partition:
    """Everyone's own handwriting: 539 writers of 19 to 131 digits, or so many of them drawn by the seed."""
    if not 1 <= clients <= WRITERS:
        raise BadInput(f"a population of {clients}: MNIST's training digits have 1 to {WRITERS} writers")
    data = load()
    chosen = np.sort(_shuffled(WRITERS, "writers", seed)[:clients])
    mine = np.isin(data.writer, chosen)
    return partition(data.x[mine], data.y[mine], np.searchsorted(chosen, data.writer[mine]))


def evaluate(scores: Scores, population: Population) -> dict[str, float]:
    """accuracy, AUC and log-loss on the 10,000 digits of the official test set."""
    data = load()
    return class_quality(outputs_of(scores, data.test_x), data.test_y)


def _shuffled(count: int, what: str, seed: int) -> NDArray[np.int64]:
    """0 to count-1 in an order of this seed."""
    seeds = seeds_of(draw_seed("mnist", what, seed), np.zeros(1, dtype=np.int64))
    return permutations(seeds, np.array([count])).reshape(-1)


def _dealt(order: NDArray[np.int64], clients: int) -> Partition:
    """The digits in this order, cut into equal parts, one a client."""
    data = load()
    return partition(data.x[order], data.y[order], np.repeat(np.arange(clients), DIGITS // clients))


def _refuse_uneven(parts: int) -> None:
    if parts < 1 or DIGITS % parts:
        raise BadInput(f"{DIGITS:,} digits do not part into {parts} equal parts; give a number that divides them")


RECIPE = {"epochs": 5, "batch_size": 10, "learning_rate": 0.1, "goal": 10}

TASK = FleetTask("mnist", cnn, by_writer, evaluate, "accuracy", WRITERS, RECIPE)

CNN_IID = FleetTask("mnist-cnn-iid", cnn, iid, evaluate, "accuracy", CLIENTS, RECIPE)
CNN_SHARDS = replace(CNN_IID, name="mnist-cnn-shards", population=shards)
TWO_NN_IID = replace(CNN_IID, name="mnist-2nn-iid", build_model=two_nn, recipe={**RECIPE, "epochs": 1})
TWO_NN_SHARDS = replace(TWO_NN_IID, name="mnist-2nn-shards", population=shards)
