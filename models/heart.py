"""Heart disease at four hospitals: the rows, split and protocol of FLamby's Fed-Heart-Disease.

740 patients with 13 inputs, split 486 : 254 as in Ogier du Terrail et al., "FLamby: Datasets and Benchmarks for
Cross-Silo Federated Learning in Realistic Healthcare Settings", NeurIPS 2022. FLamby scales each hospital's inputs by
that hospital's own mean and spread; the four then mean different things by the same number. Ours are scaled by the
mean and spread over all hospitals, which take two sums a hospital to know and no row. For research, not for clinics.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split
from torch import from_numpy, nn

from models.errors import BadInput
from models.fleet_files import HOSPITALS, fleet_file
from models.fleet_task import FleetTask
from models.population import Partition, Population, partition
from models.scores import Scores, binary_quality, outputs_of

COLUMNS = ("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak", "slope", "ca")
FEATURES = 13

Scaling = Literal["together", "own"]


@dataclass(frozen=True)
class Patients:
    """x float64 [740, 13], as recorded, of columns `names`; y int64, 1: disease; hospital 0 to 3; training: who is
    learned from."""

    x: NDArray[np.float64]
    y: NDArray[np.int64]
    hospital: NDArray[np.int64]
    training: NDArray[np.bool_]
    names: tuple[str, ...]

    def scaled(self, scaling: Scaling) -> NDArray[np.float32]:
        """x in units of the training patients' spread around their mean: those of all hospitals, or of one's own."""
        groups = np.zeros_like(self.hospital) if scaling == "together" else self.hospital
        out = np.empty_like(self.x)
        for group in np.unique(groups):
            mine, learned = groups == group, self.training & (groups == group)
            # The sums that a hospital would send; FLamby's spread divides by one less than the number.
            number, total, squares = learned.sum(), self.x[learned].sum(axis=0), (self.x[learned] ** 2).sum(axis=0)
            spread = np.sqrt(np.maximum(squares - total**2 / number, 0.0) / (number - 1))
            out[mine] = (self.x[mine] - total / number) / np.where(spread > 1e-9, spread, 1.0)
        return out.astype(np.float32)


@cache
def load() -> Patients:
    """The four hospitals' patients who have every value left after slope, ca and thal are dropped, as FLamby does."""
    tables = []
    for number, name in enumerate(HOSPITALS):
        path = fleet_file(f"processed.{name}.data")
        table = pd.read_csv(path, header=None, names=[*COLUMNS, "thal", "num"], na_values="?")
        table = table.drop(columns=["slope", "ca", "thal"]).dropna()
        tables.append(table.assign(hospital=number, training=_chosen(_diseased(table))))
    table = pd.concat(tables, ignore_index=True)
    inputs = pd.get_dummies(
        table.drop(columns=["num", "hospital", "training"]), columns=["cp", "restecg"], drop_first=True
    )
    return Patients(
        inputs.to_numpy(np.float64),
        _diseased(table),
        table["hospital"].to_numpy(np.int64),
        table["training"].to_numpy(np.bool_),
        tuple(map(str, inputs.columns)),
    )


def _diseased(table: pd.DataFrame) -> NDArray[np.int64]:
    return (table["num"].to_numpy(np.float64) > 0).astype(np.int64)


def _chosen(y: NDArray[np.int64]) -> NDArray[np.bool_]:
    """FLamby's two thirds of a hospital to learn from: by class where each has more than two patients."""
    stratify = y if np.bincount(y, minlength=2).min() > 2 else None
    _, test = train_test_split(np.arange(len(y)), train_size=0.66, test_size=0.34, random_state=43, stratify=stratify)
    training = np.ones(len(y), dtype=np.bool_)
    training[test] = False
    return training


def hospitals(size: int = 4, seed: int = 0, scaling: Scaling = "together") -> Partition:
    """The four hospitals as clients, their test patients held out; the seed decides nothing."""
    if size != len(HOSPITALS):
        raise BadInput(f"a population of {size}: the heart data has {len(HOSPITALS)} hospitals; ask for those")
    data = load()
    x = data.scaled(scaling)
    train, test = (partition(x[rows], data.y[rows], data.hospital[rows]) for rows in (data.training, ~data.training))
    return replace(train, test=test)


def evaluate(scores: Scores, population: Population) -> dict[str, float]:
    """accuracy, AUC and log-loss over the 254 test patients ("Pooled Test"), and each hospital's accuracy.

    The pooled patients are scaled by all hospitals' training patients even where each hospital scales its own, as
    FLamby does.
    """
    data = load()
    x = from_numpy(data.scaled("together")[~data.training])
    quality = binary_quality(outputs_of(scores, x)[:, 0], from_numpy(data.y[~data.training]))
    held_out = population.held_out(np.arange(len(HOSPITALS), dtype=np.int64))
    for number, name in enumerate(HOSPITALS):
        own_x, own_y = held_out.client(number)
        quality[f"accuracy_{name}"] = binary_quality(outputs_of(scores, own_x)[:, 0], own_y)["accuracy"]
    return quality


def build_model() -> nn.Module:
    """14 parameters."""
    return nn.Linear(FEATURES, 1)


# By five-fold cross-validation, four times over, within the training patients (log-loss); no test patient had a say.
# 30 rounds of one whole batch each: a hospital's patients are so unlike the others' that more local steps lose.
RECIPE = {"rounds": 30, "epochs": 1, "batch_size": 0, "learning_rate": 0.3, "weight_decay": 0.01, "goal": 4}

TASK = FleetTask("heart", build_model, hospitals, evaluate, "accuracy", 4, RECIPE, lambda: load().names)

UPDATES, ROUNDS = 100, 15
"""FLamby's budget: batches a hospital learns from in a round, and rounds."""

FLAMBY = replace(
    TASK,
    name="heart-flamby",
    population=partial(hospitals, scaling="own"),
    recipe={"rounds": ROUNDS, "updates": UPDATES, "epochs": 1, "batch_size": 4, "learning_rate": 0.001, "goal": 4},
)
"""As published: FedAvg reaches .748 there, pooled training .795. A round is 100 updates whatever a hospital's size."""
