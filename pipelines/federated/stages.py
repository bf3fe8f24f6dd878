"""Stages: pairs of functions that an update passes through, on the site and then, in reverse order, on the server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from pipelines.federated.layout import Layout
from pipelines.federated.rules import LocalRule, Seats


class Stage(Protocol):
    """What an update passes. A stage inherits what it does not do: keep something, change the mean, encode."""

    @property
    def name(self) -> str: ...

    @property
    def memory(self) -> tuple[str, ...]:
        """Names of vectors [sites, size] that a site keeps for it between rounds, zeros at first."""
        return ()

    @property
    def encodes(self) -> bool:
        """Whether it decides the form in which an update is sent."""
        return False

    def on_site(self, updates: torch.Tensor, seats: Seats) -> torch.Tensor:
        """Before the updates [sites, size] leave their sites."""
        ...

    def on_server(self, update: torch.Tensor) -> torch.Tensor:
        """After they were reduced to one [size]."""
        return update

    def size_bytes(self, layout: Layout) -> float:
        """What one site's update takes on the wire in the stage's form: float32, where it has none of its own."""
        return 4.0 * layout.size


@dataclass(frozen=True)
class ClipByNorm(Stage):
    """Scale a site's whole update down to the L2 norm `bound` where it is longer."""

    bound: float

    @property
    def name(self) -> str:
        return f"clip({self.bound:g})"

    def on_site(self, updates: torch.Tensor, seats: Seats) -> torch.Tensor:
        norms = torch.linalg.vector_norm(updates, dim=1, dtype=torch.float64)
        scale: torch.Tensor = (self.bound / norms.clamp_min(1e-12)).clamp_max(1.0)
        return updates * scale.to(updates.dtype)[:, None]


def sent_bytes(stages: Sequence[Stage], layout: Layout) -> float:
    """What one site's update takes on the wire: in the form of the stage that encodes it, else in float32."""
    return next((stage.size_bytes(layout) for stage in stages if stage.encodes), 4.0 * layout.size)


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
