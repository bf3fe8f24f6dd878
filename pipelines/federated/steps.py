"""The batches of a chunk of sites: which rows each local step sees. The rows themselves are not copied."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from models.draws import Words, orders, permutations
from models.population import Ragged
from pipelines.federated.work import LocalWork


@dataclass(frozen=True)
class Steps:
    """What a kernel works through.

    x: float32 or uint8 [rows, ...] (uint8 is scaled by 1/255 as it is used); y: int64 [rows].
    index: int64 [sites, steps, batch], rows of x for each local step.
    weight: float32 of the same shape, a row's weight, 0 for padding; None where every row counts 1 and all sites
    have the same number of full batches.
    steps: int64 [sites], batches a site really has; examples: float64 [sites], the sum of its rows' weights.
    """

    x: torch.Tensor
    y: torch.Tensor
    index: torch.Tensor
    weight: torch.Tensor | None
    steps: NDArray[np.int64]
    examples: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.steps)


APART = 2**32
"""Words of a client's stream between two passes' draws: a pass must not depend on who else is in the chunk."""


def steps_of(rows: Ragged, work: LocalWork, seeds: Words) -> Steps:
    """Passes over each client's rows, each in an order of its own that its seed [clients] determines.

    The last batch of a pass holds what is left (McMahan et al., 2017, algorithm 1).
    """
    counts = rows.counts
    width = int(counts.max(initial=0))
    if (
        not work.updates
        and work.batch_size
        and width % work.batch_size == 0
        and int(counts.min(initial=width)) == width > 0
    ):
        return _whole_batches(rows, work, seeds, width)
    batch = work.batch_size or max(width, 1)
    per_epoch = -(-counts // batch)
    longest = int(per_epoch.max(initial=0))
    epochs, own_epochs = work.epochs, np.full(len(counts), work.epochs, dtype=np.int64)
    if work.updates:
        own_epochs = -(-work.updates // np.maximum(per_epoch, 1))
        epochs = int(own_epochs.max(initial=0))
    order = np.full((len(counts), epochs, longest * batch), -1, dtype=np.int64)
    for epoch in range(epochs):
        order[:, epoch, :width] = permutations(seeds, counts, start=epoch * APART)
    steps, examples = per_epoch * own_epochs, counts.astype(np.float64)
    if work.updates:
        steps = np.minimum(steps, work.updates)
    whole = len(counts) > 0 and bool((counts == longest * batch).all())
    index = torch.from_numpy(np.where(order < 0, 0, order + rows.starts[:, None, None]))
    index = _close_up(index, per_epoch, epochs, batch)
    weight = None if whole else _close_up(torch.from_numpy((order >= 0).astype(np.float32)), per_epoch, epochs, batch)
    if work.updates:
        index, weight = index[:, : work.updates], None if weight is None else weight[:, : work.updates]
    if weight is not None:
        weight = weight * torch.from_numpy(np.arange(weight.shape[1]) < steps[:, None])[:, :, None]
    return Steps(rows.x, rows.y, index, weight, steps, examples)


def _whole_batches(rows: Ragged, work: LocalWork, seeds: Words, width: int) -> Steps:
    """The same where all clients hold as many rows, a multiple of the batch: nothing is padded or closed up."""
    passes = [orders(seeds, width, start=epoch * APART) for epoch in range(work.epochs)]
    order = passes[0] if len(passes) == 1 else np.concatenate(passes, axis=1)
    index = torch.from_numpy(order + rows.starts[:, None]).view(len(rows), -1, work.batch_size)
    steps = np.full(len(rows), index.shape[1], dtype=np.int64)
    return Steps(rows.x, rows.y, index, None, steps, rows.counts.astype(np.float64))


def _close_up(part: torch.Tensor, per_epoch: NDArray[np.int64], epochs: int, batch: int) -> torch.Tensor:
    """[clients, epochs, rows] → [clients, steps, batch] without the gaps that shorter clients have in every epoch.

    What stands behind a client's last step is of no meaning.
    """
    clients, _, rows = part.shape
    longest = rows // batch
    if epochs == 1 or bool((per_epoch == longest).all()):
        return part.view(clients, epochs * longest, batch)
    step = np.arange(epochs * longest)
    own = np.minimum(step[None, :], np.maximum(per_epoch * epochs - 1, 0)[:, None])
    each = np.maximum(per_epoch, 1)[:, None]
    source = torch.from_numpy(own // each * longest + own % each)
    return part.view(clients, epochs * longest, batch).gather(1, source[:, :, None].expand(-1, -1, batch))
