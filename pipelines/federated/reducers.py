"""Reducers: how the updates of a round become one. Each is a running state, so a cohort's updates never pile up
unless the rule needs them all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pipelines.federated.jobs import Parameters


@dataclass(frozen=True)
class Reducer:
    """start() → state; add(state, update, weight) → state; finish(state) → the reduced update."""

    name: str
    start: Callable[[], Any]
    add: Callable[[Any, Parameters, float], Any]
    finish: Callable[[Any], Parameters]


def _mean_add(state: tuple[Parameters, float], update: Parameters, weight: float) -> tuple[Parameters, float]:
    total, weights = state
    if not total:
        return {name: tensor.double() * weight for name, tensor in update.items()}, weight
    for name, tensor in update.items():
        total[name].add_(tensor.double(), alpha=weight)
    return total, weights + weight


def _mean_finish(state: tuple[Parameters, float]) -> Parameters:
    total, weights = state
    return {name: (tensor / max(weights, 1e-12)).float() for name, tensor in total.items()}


MEAN = Reducer("mean", lambda: ({}, 0.0), _mean_add, _mean_finish)
"""Mean weighted by examples: FedAvg (McMahan et al., 2017, algorithm 1). Summed in float64."""


def _median_add(state: list[Parameters], update: Parameters, weight: float) -> list[Parameters]:
    return [*state, update] if weight > 0 else state


def _median_finish(state: list[Parameters]) -> Parameters:
    # Not torch.median: of an even number it takes the lower middle one, a pull downwards in every round.
    ordered = {name: torch.stack([update[name] for update in state]).sort(dim=0).values for name in state[0]}
    return {name: (v[(len(state) - 1) // 2] + v[len(state) // 2]) / 2 for name, v in ordered.items()}


MEDIAN = Reducer("median", list, _median_add, _median_finish)
"""Coordinate-wise median, unweighted (Yin et al., 2018): holds against a minority of arbitrary updates."""

REDUCERS: Mapping[str, Reducer] = {r.name: r for r in (MEAN, MEDIAN)}
