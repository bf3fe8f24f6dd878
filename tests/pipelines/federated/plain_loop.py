"""The published algorithms as plain loops in numpy float64, written from the papers: nothing here is the product's.

The model is a perceptron with one hidden tanh layer and a softmax, its gradient written out by hand. What comes in is
the same for the product and for these loops: the data, who takes part in each round, and each site's batches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Site = tuple[Vector, NDArray[np.int64]]
Batches = Callable[[int, int], list[NDArray[np.int64]]]
"""(round, site) → the rows of each local step."""

FEATURES, HIDDEN, CLASSES = 4, 5, 3


def gradient(w: Vector, x: Vector, y: NDArray[np.int64]) -> Vector:
    """Of the mean cross-entropy; w holds the hidden biases and weights, then the output's."""
    parts = np.split(w, np.cumsum([HIDDEN, HIDDEN * FEATURES, CLASSES]))
    first, second = parts[1].reshape(HIDDEN, FEATURES), parts[3].reshape(CLASSES, HIDDEN)
    hidden = np.tanh(x @ first.T + parts[0])
    logits = hidden @ second.T + parts[2]
    chances = np.exp(logits - logits.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    chances[np.arange(len(y)), y] -= 1
    above = chances / len(y)
    below = (above @ second) * (1 - hidden**2)
    return np.concatenate([below.sum(0), (below.T @ x).ravel(), above.sum(0), (above.T @ hidden).ravel()])


@dataclass(frozen=True)
class Setting:
    """rate, momentum: of the local SGD; sites and cohorts, one list of site numbers a round."""

    sites: list[Site]
    cohorts: list[list[int]]
    batches: Batches
    rate: float
    momentum: float = 0.0

    def local(self, w: Vector, number: int, site: int, extra: Callable[[Vector], Vector] = np.zeros_like) -> Vector:
        """Where local SGD ends; `extra` is added to every gradient."""
        x, y = self.sites[site]
        w, velocity = w.copy(), np.zeros_like(w)
        for rows in self.batches(number, site):
            velocity = self.momentum * velocity + gradient(w, x[rows], y[rows]) + extra(w)
            w = w - self.rate * velocity
        return w

    def shares(self, cohort: list[int]) -> Vector:
        counts = np.array([len(self.sites[site][1]) for site in cohort], dtype=np.float64)
        return np.asarray(counts / counts.sum())

    def rounds(self) -> list[tuple[int, list[int]]]:
        return list(enumerate(self.cohorts, 1))


def mean_delta(setting: Setting, w: Vector, number: int, cohort: list[int], mu: float = 0.0) -> Vector:
    """McMahan et al., 2017, algorithm 1; with mu, Li et al., 2020 (FedProx), algorithm 2."""
    delta = np.zeros_like(w)
    for share, site in zip(setting.shares(cohort), cohort, strict=True):
        delta += share * (setting.local(w, number, site, lambda at: mu * (at - w)) - w)
    return delta


def fedavg(setting: Setting, w: Vector, server_rate: float = 1.0, mu: float = 0.0) -> Vector:
    for number, cohort in setting.rounds():
        w = w + server_rate * mean_delta(setting, w, number, cohort, mu)
    return w


def fedsgd(setting: Setting, w: Vector) -> Vector:
    """McMahan et al., 2017, section 2: the gradient of everybody's rows in the cohort, one step."""
    for _, cohort in setting.rounds():
        x = np.concatenate([setting.sites[site][0] for site in cohort])
        y = np.concatenate([setting.sites[site][1] for site in cohort])
        w = w - setting.rate * gradient(w, x, y)
    return w


def fedavgm(setting: Setting, w: Vector, beta: float, server_rate: float = 1.0) -> Vector:
    """Hsu et al., 2019, section 4.3: v = beta v + Δw, w = w - v with Δw the descent direction."""
    v = np.zeros_like(w)
    for number, cohort in setting.rounds():
        v = beta * v - mean_delta(setting, w, number, cohort)
        w = w - server_rate * v
    return w


def adaptive(setting: Setting, w: Vector, kind: str, rate: float, beta1: float, beta2: float, tau: float) -> Vector:
    """Reddi et al., 2021, algorithm 2."""
    m, v = np.zeros_like(w), np.full_like(w, tau**2)
    for number, cohort in setting.rounds():
        delta = mean_delta(setting, w, number, cohort)
        m = beta1 * m + (1 - beta1) * delta
        if kind == "adagrad":
            v = v + delta**2
        elif kind == "yogi":
            v = v - (1 - beta2) * delta**2 * np.sign(v - delta**2)
        else:
            v = beta2 * v + (1 - beta2) * delta**2
        w = w + rate * m / (np.sqrt(v) + tau)
    return w


def scaffold(setting: Setting, w: Vector, server_rate: float = 1.0) -> tuple[Vector, Vector, list[Vector]]:
    """Karimireddy et al., 2020, algorithm 1, option II: also c and every c_i."""
    c = np.zeros_like(w)
    own = [np.zeros_like(w) for _ in setting.sites]
    for number, cohort in setting.rounds():
        moves, changes = [], []
        for site in cohort:
            y = setting.local(w, number, site, lambda _, site=site, c=c: c - own[site])  # type: ignore[misc]
            steps = len(setting.batches(number, site))
            new = own[site] - c + (w - y) / (steps * setting.rate)
            moves.append(y - w)
            changes.append(new - own[site])
            own[site] = new
        w = w + server_rate * np.mean(moves, axis=0)
        c = c + len(cohort) / len(setting.sites) * np.mean(changes, axis=0)
    return w, c, own


def fednova(setting: Setting, w: Vector, mu: float = 0.0) -> Vector:
    """Wang et al., 2020: the accumulation vectors a_i of section 4.1 written out, for momentum or a proximal term."""
    for number, cohort in setting.rounds():
        shares = setting.shares(cohort)
        directions, norms = [], []
        for site in cohort:
            steps = len(setting.batches(number, site))
            if setting.momentum:
                a = [(1 - setting.momentum ** (steps - k)) / (1 - setting.momentum) for k in range(steps)]
            else:
                a = [(1 - setting.rate * mu) ** (steps - 1 - k) for k in range(steps)]
            norms.append(sum(a))
            end = setting.local(w, number, site, lambda at, w=w: mu * (at - w))  # type: ignore[misc]
            directions.append((w - end) / (setting.rate * sum(a)))
        effective = float(shares @ np.array(norms))
        w = w - effective * setting.rate * (shares @ np.array(directions))
    return w


def ditto(setting: Setting, w: Vector, pull: float) -> tuple[Vector, dict[int, Vector]]:
    """Li et al., 2021, algorithm 1 with FedAvg as its solver; a personal model begins where its first round does."""
    personal: dict[int, Vector] = {}
    for number, cohort in setting.rounds():
        for site in cohort:
            begin = personal.get(site, w)
            personal[site] = setting.local(begin, number, site, lambda at, w=w: pull * (at - w))  # type: ignore[misc]
        w = w + mean_delta(setting, w, number, cohort)
    return w, personal
