"""Stages: pairs of functions that an update passes through, on the site and then, in reverse order, on the server."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipelines.federated.jobs import Parameters, Stage


def clip_by_norm(bound: float) -> Stage:
    """Scale a site's whole update down to the L2 norm `bound` where it is longer."""

    def clip(update: Parameters) -> Parameters:
        norm = torch.cat([tensor.double().flatten() for tensor in update.values()]).norm()
        scale = float((bound / norm.clamp_min(1e-12)).clamp_max(1.0))
        return {name: tensor * scale for name, tensor in update.items()}

    return Stage(f"clip({bound:g})", clip, lambda update: update)


def on_site(stages: Sequence[Stage], update: Parameters) -> Parameters:
    for stage in stages:
        update = stage.on_site(update)
    return update


def on_server(stages: Sequence[Stage], update: Parameters) -> Parameters:
    for stage in reversed(stages):
        update = stage.on_server(update)
    return update
