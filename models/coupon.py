"""Will this person take this offer? The keyboard's question on real answers: coupons shown in a car (UCI 603).

12,684 answers of people who were asked whether they would accept a coupon in a given situation: Wang et al., "A
Bayesian framework for learning rule sets for interpretable classification", JMLR 2017, CC BY 4.0. A person is a
client, 587 of them with 6 to 34 answers. Every fifth person is in no training: a model is judged on people it has
never met, as a triggering model is.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import nn

from models.draws import draw_seed, permutations, seeds_of
from models.errors import BadInput
from models.fleet_files import fleet_file
from models.fleet_task import FleetTask
from models.population import Partition, Population, partition
from models.scores import Scores, binary_quality, outputs_of

FEATURES = 127
TRAINED, TESTED = 469, 118
"""People to learn from and people to be judged on."""

Rows = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]


@cache
def load() -> Rows:
    """x float32 [12684, 127], y int64 (1: would accept), person int64, sorted by person.

    Every column is one-hot, an answer that is missing is one of its categories. The checksum of the file fixes which
    categories there are.
    """
    table = pd.read_parquet(fleet_file("coupon.parquet"))
    x = _one_hot(table).to_numpy()
    return np.ascontiguousarray(x), table["Y"].to_numpy(np.int64), table["user"].to_numpy(np.int64)


def _one_hot(table: pd.DataFrame) -> pd.DataFrame:
    answers = table.drop(columns=["user", "Y"]).astype("string").fillna("missing")
    return pd.get_dummies(answers, dtype=np.float32)


def features() -> tuple[str, ...]:
    """The 127 columns: question and answer."""
    return tuple(map(str, _one_hot(pd.read_parquet(fleet_file("coupon.parquet"))).columns))


def people(size: int = TRAINED, seed: int = 0, held_out_every: int = 0) -> Partition:
    """The people to learn from as clients, or so many of them drawn by the seed.

    held_out_every: of each person every so-many-th answer is held out, to judge personal models; 0: none is.

    Raises:
        BadInput: there are not so many people.
    """
    if not 1 <= size <= TRAINED:
        raise BadInput(f"a population of {size}: the coupon data has 1 to {TRAINED} people to learn from")
    x, y, person = load()
    who = np.unique(person[person % 5 != 0])
    drawn = permutations(seeds_of(draw_seed("coupon", seed), np.zeros(1, dtype=np.int64)), np.array([len(who)]))[0]
    chosen = np.sort(who[drawn[:size]])
    client = np.searchsorted(chosen, person)
    mine = np.isin(person, chosen)
    number = np.arange(len(person)) - np.searchsorted(person, person)
    kept = mine & (number % held_out_every != 1) if held_out_every else mine
    training = partition(x[kept], y[kept], client[kept])
    if not held_out_every:
        return training
    return replace(training, test=partition(x[mine & ~kept], y[mine & ~kept], client[mine & ~kept]))


def strangers() -> Partition:
    """The 118 people whom no model learns from."""
    x, y, person = load()
    test = person % 5 == 0
    return partition(x[test], y[test], person[test] // 5)


def build_model() -> nn.Module:
    """128 parameters."""
    return nn.Linear(FEATURES, 1)


def evaluate(scores: Scores, population: Population) -> dict[str, float]:
    """accuracy, AUC and log-loss on the 2,585 answers of the people whom no model learns from."""
    test = strangers()
    return binary_quality(outputs_of(scores, test.x)[:, 0], test.y)


# By cross-validation over the people to learn from.
RECIPE = {"rounds": 200, "epochs": 1, "batch_size": 10, "learning_rate": 0.1, "goal": 50}

TASK = FleetTask("coupon", build_model, people, evaluate, "auc", TRAINED, RECIPE, features)

PERSONAL = replace(TASK, name="coupon-personal", population=partial(people, held_out_every=4))
"""Every fourth answer of a person is held out, so that a person's own model can be judged."""
