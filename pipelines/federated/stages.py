"""Stages: pairs of functions that an update passes through, on the site and then, in reverse order, on the server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from pipelines.federated.layout import Layout
from pipelines.federated.rules import LocalRule, Seats


class Stage(Protocol):
    """memory: names of vectors [sites, size] that a site keeps for it between rounds, zeros at first."""

    @property
    def name(self) -> str: ...
    @property
    def memory(self) -> tuple[str, ...]: ...

    def on_site(self, updates: torch.Tensor, seats: Seats) -> torch.Tensor:
        """Before the updates [sites, size] leave their sites."""
        ...

    def on_server(self, update: torch.Tensor) -> torch.Tensor:
        """After they were reduced to one [size]."""
        ...

    def size_bytes(self, layout: Layout, size_bytes: float) -> float:
        """What one site's update takes on the wire after this stage, of `size_bytes` before it."""
        ...


@dataclass(frozen=True)
class ClipByNorm:
    """Scale a site's whole update down to the L2 norm `bound` where it is longer."""

    bound: float
    memory: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"clip({self.bound:g})"

    def on_site(self, updates: torch.Tensor, seats: Seats) -> torch.Tensor:
        norms = torch.linalg.vector_norm(updates, dim=1, dtype=torch.float64)
        scale: torch.Tensor = (self.bound / norms.clamp_min(1e-12)).clamp_max(1.0)
        return updates * scale.to(updates.dtype)[:, None]

    def on_server(self, update: torch.Tensor) -> torch.Tensor:
        return update

    def size_bytes(self, layout: Layout, size_bytes: float) -> float:
        return size_bytes


def memory_names(rule: LocalRule, stages: Sequence[Stage]) -> list[str]:
    """All that a site keeps between rounds for its rule and its stages."""
    return sorted({*rule.memory, *(name for stage in stages for name in stage.memory)})


def on_site(stages: Sequence[Stage], updates: torch.Tensor, seats: Seats) -> torch.Tensor:
    for stage in stages:
        updates = stage.on_site(updates, seats)
    return updates


def on_server(stages: Sequence[Stage], update: torch.Tensor) -> torch.Tensor:
    for stage in reversed(stages):
        update = stage.on_server(update)
    return update
