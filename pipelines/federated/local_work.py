"""A site's part in a round: the batches it draws, the SGD of a kernel, the rule and the stages around it.

The same `local_updates` serves one hospital, several stepped together, and a chunk of simulated phones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from models.images import Images, to_tensor
from models.sensor import Sensor
from pipelines.federated.kernels.kernel import Kernel
from pipelines.federated.rules import LocalRule, Seats, Sent, Turn
from pipelines.federated.stages import Stage, on_site
from pipelines.federated.steps import Steps
from pipelines.federated.work import LocalWork

Augment = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


@dataclass(frozen=True)
class LabelledRows:
    """images: uint8 [n, h, w, c]; labels: int64 [n]; weights: float32 [n], 1 for a bought label.

    among: how many rows these were labelled of. An epoch goes over the labelled ones as often as takes no more steps
    than all of them would: how long a site trains must not hang on how many labels were bought or spread there.
    old: bool [n], rows taken under the light before; sensor: how new pictures are exposed. In training, half of the
    old rows of an epoch are seen through it.
    """

    images: Images
    labels: torch.Tensor
    weights: torch.Tensor
    old: torch.Tensor | None = None
    sensor: Sensor | None = None
    among: int = 0

    def __len__(self) -> int:
        return len(self.labels)


def site_steps(rows: LabelledRows, work: LocalWork, seed: int, augment: Augment | None) -> Steps:
    """One site's batches of a round, each epoch augmented anew; the last batch of an epoch is padded with weight 0."""
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    x_all, n = to_tensor(rows.images), len(rows)
    batch = work.batch_size or max(n, 1)
    per_epoch = -(-n // batch)
    whole = rows.among // batch if work.batch_size else 1
    passes = -(-work.updates // max(per_epoch, 1)) if work.updates else work.epochs * max(1, whole // max(per_epoch, 1))
    epochs, labels, weights = [], [], []
    for _ in range(passes):
        order = torch.from_numpy(rng.permutation(n))
        x_epoch = x_all[order]
        if augment is not None:
            x_epoch = augment(x_epoch, generator)
        if rows.sensor is not None and rows.old is not None:
            seen_anew = rows.old[order] & (torch.rand(n, generator=generator) < 0.5)
            x_epoch = torch.where(seen_anew.view(-1, 1, 1, 1), rows.sensor(x_epoch, generator), x_epoch)
        epochs.append(x_epoch)
        labels.append(rows.labels[order])
        weights.append(rows.weights[order])
    place = torch.arange(per_epoch * batch).view(per_epoch, batch)
    padding = place >= n
    first_row = torch.arange(passes).view(-1, 1, 1) * n
    index = torch.where(padding, 0, place + first_row).view(1, -1, batch)
    y, w = torch.cat(labels), torch.cat(weights)
    weight = torch.where(padding.repeat(passes, 1)[None], 0.0, w[index]) if n else w.new_zeros(index.shape)
    count = work.updates or passes * per_epoch
    index, weight = index[:, :count], weight[:, :count]
    steps = np.array([index.shape[1]], dtype=np.int64)
    return Steps(torch.cat(epochs), y, index, weight, steps, np.array([float(rows.weights.sum())]))


def join(parts: Sequence[Steps]) -> Steps:
    """The steps of several sites as those of one chunk. All have the same batch size and weights."""
    longest = max(part.index.shape[1] for part in parts)
    indices, weights, before = [], [], 0
    for part in parts:
        assert part.weight is not None, "site_steps gives weights"
        missing = longest - part.index.shape[1]
        indices.append(torch.nn.functional.pad(part.index + before, (0, 0, 0, missing)))
        weights.append(torch.nn.functional.pad(part.weight, (0, 0, 0, missing)))
        before += len(part.y)
    return Steps(
        torch.cat([part.x for part in parts]),
        torch.cat([part.y for part in parts]),
        torch.cat(indices),
        torch.cat(weights),
        np.concatenate([part.steps for part in parts]),
        np.concatenate([part.examples for part in parts]),
    )


def local_updates(
    kernel: Kernel,
    steps: Steps,
    start: torch.Tensor,
    shared: torch.Tensor,
    work: LocalWork,
    rule: LocalRule,
    stages: Sequence[Stage],
    seats: Seats,
    measure_loss: bool = True,
) -> Sent:
    """What each site of a chunk sends [sites, >= size], and its loss [sites]; valid until the kernel's next call.

    start: [size], the server's weights; shared: what the rule's server half sends along. `seats.memory` is replaced
    by what the sites keep.
    """

    def train(
        start: torch.Tensor,
        correction: torch.Tensor | None = None,
        anchor: torch.Tensor | None = None,
        proximal: float | None = None,
    ) -> Sent:
        own = work if proximal is None else replace(work, proximal=proximal)
        return kernel(start, steps, own, correction=correction, anchor=anchor, measure_loss=measure_loss)

    sent, losses = rule.local(Turn(train, start, shared, seats, steps.steps, work))
    if not stages:
        return sent, losses
    size = seats.layout.size
    update = on_site(stages, sent[:, :size], seats)
    return (update if sent.shape[1] == size else torch.cat([update, sent[:, size:]], dim=1)), losses
