"""Reducers: how the updates of a round become one. Each is a running state, so a cohort's updates never pile up
unless the rule needs them all; two states merge, so aggregators can share a round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Reducer:
    """start() → state; add(state, updates [sites, size], weights float64 [sites]) → state, which may be the old one
    changed in place; merge(state, state) → state; finish(state) → the reduced update [size], float32.
    """

    name: str
    start: Callable[[], Any]
    add: Callable[[Any, torch.Tensor, torch.Tensor], Any]
    merge: Callable[[Any, Any], Any]
    finish: Callable[[Any], torch.Tensor]


Sum = tuple[torch.Tensor | None, float]


def _mean_add(state: Sum, updates: torch.Tensor, weights: torch.Tensor) -> Sum:
    total, weight = state
    # A chunk is summed in its own precision, the chunks in float64.
    own = torch.mv(updates.T, weights.to(updates.dtype))
    return own.double() if total is None else total.add_(own), weight + float(weights.sum())


def _mean_merge(one: Sum, other: Sum) -> Sum:
    totals = [total for total, _ in (one, other) if total is not None]
    return (sum(totals[1:], totals[0]) if totals else None), one[1] + other[1]


def _mean_finish(state: Sum) -> torch.Tensor:
    total, weight = state
    return torch.zeros(0) if total is None else (total / max(weight, 1e-12)).float()


MEAN = Reducer("mean", lambda: (None, 0.0), _mean_add, _mean_merge, _mean_finish)
"""Mean weighted by examples: FedAvg (McMahan et al., 2017, algorithm 1)."""


def _median_add(state: list[torch.Tensor], updates: torch.Tensor, weights: torch.Tensor) -> list[torch.Tensor]:
    # A kernel's buffer is used again for the next chunk: indexing by a mask copies it.
    return [*state, updates[weights > 0]]


def _median_finish(state: list[torch.Tensor]) -> torch.Tensor:
    # Not torch.median: of an even number it takes the lower middle one, a pull downwards in every round.
    ordered = torch.cat(state).sort(dim=0).values
    return ((ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2).float()


MEDIAN = Reducer("median", list, _median_add, lambda one, other: one + other, _median_finish)
"""Coordinate-wise median, unweighted (Yin et al., 2018): holds against a minority of arbitrary updates."""

REDUCERS: Mapping[str, Reducer] = {r.name: r for r in (MEAN, MEDIAN)}
