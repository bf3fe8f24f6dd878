"""What kernels are tested with: small models, drawn works and batches, and an independent loop to compare with."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
from hypothesis import strategies as st
from torch import nn

from pipelines.federated.kernels.kernel import Kernel
from pipelines.federated.layout import Layout
from pipelines.federated.steps import Steps
from pipelines.federated.work import LocalWork


def affine() -> nn.Module:
    return nn.Linear(6, 4)


def logistic() -> nn.Module:
    return nn.Linear(6, 1)


def flat_affine() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(18, 3))


def dense() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(18, 7), nn.ReLU(), nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3))


def wide() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 2), nn.Flatten(), nn.Linear(12, 30), nn.ReLU(), nn.Linear(30, 26), nn.Tanh(), nn.Linear(26, 3)
    )


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 3),
        nn.Tanh(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(20, 6),
        nn.ReLU(),
        nn.Linear(6, 3),
    )


def normalised() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.GroupNorm(2, 4), nn.SiLU(), nn.Flatten(), nn.Linear(36, 3))


def odd_pooling() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1, bias=False),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(3, 3, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12, 1, bias=False),
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "affine": (affine, (6,)),
    "logistic": (logistic, (6,)),
    "flat affine": (flat_affine, (2, 3, 3)),
    "dense": (dense, (2, 3, 3)),
    "wide": (wide, (2, 3, 3)),
    "convolutional": (convolutional, (2, 12, 12)),
    "odd pooling": (odd_pooling, (1, 7, 7)),
    "normalised": (normalised, (1, 8, 8)),
}
"""By name: how to build it, the shape of a row. Built under a fixed seed by `build`."""


def build(name: str) -> tuple[nn.Module, Layout]:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = MODELS[name][0]()
    return model, Layout.of_model(model)


works = st.sampled_from([LocalWork(learning_rate=0.2)]) | st.builds(
    LocalWork,
    learning_rate=st.sampled_from([0.05, 0.2]),
    momentum=st.sampled_from([0.0, 0.9]),
    weight_decay=st.sampled_from([0.0, 0.1]),
    clip_norm=st.sampled_from([0.0, 0.3, 100.0]),
    proximal=st.sampled_from([0.0, 0.2]),
)


def draw_steps(
    name: str, seed: int, sites: int = 3, count: int = 3, batch: int = 4, ragged: bool = True, bytes_: bool = False
) -> Steps:
    """Batches of `sites` sites: with row weights, padding and unequal step counts where `ragged`."""
    rng = np.random.default_rng(seed)
    shape = MODELS[name][1]
    rows = 20
    x = rng.integers(0, 256, (rows, *shape), dtype=np.uint8) if bytes_ else rng.normal(size=(rows, *shape))
    tensor = torch.from_numpy(x if bytes_ else x.astype(np.float32))
    outputs = build(name)[0](torch.zeros(1, *shape)).shape[1]
    y = torch.from_numpy(rng.integers(0, max(outputs, 2), rows))
    index = torch.from_numpy(rng.integers(0, rows, (sites, count, batch)))
    if not ragged:
        full = np.full(sites, count, dtype=np.int64)
        return Steps(tensor, y, index, None, full, np.full(sites, float(count * batch)))
    own = rng.integers(0, count + 1, sites)
    own[rng.integers(sites)] = count
    weight = rng.choice([0.25, 0.5, 1.0], (sites, count, batch)).astype(np.float32)
    for site in range(sites):
        weight[site, own[site] :] = 0
        if own[site]:
            weight[site, own[site] - 1, rng.integers(1, batch + 1) :] = 0
    return Steps(tensor, y, index, torch.from_numpy(weight), own, weight.sum((1, 2)).astype(np.float64))


def reference(
    model: nn.Module,
    layout: Layout,
    start: torch.Tensor,
    steps: Steps,
    work: LocalWork,
    correction: torch.Tensor | None = None,
    anchor: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same in float64 with torch's own optimizer, one row's loss at a time."""
    deltas, losses = [], []
    for site in range(len(steps)):
        own_start = (start[site] if start.dim() == 2 else start).double()
        own = copy.deepcopy(model).double()
        own.load_state_dict(layout.unflatten(own_start))
        optimizer = torch.optim.SGD(
            own.parameters(), lr=work.learning_rate, momentum=work.momentum, weight_decay=work.weight_decay
        )
        values = []
        for step in range(int(steps.steps[site])):
            index = steps.index[site, step]
            weight = torch.ones(len(index)) if steps.weight is None else steps.weight[site, step]
            scale = 255.0 if steps.x.dtype == torch.uint8 else 1.0
            loss = torch.zeros((), dtype=torch.float64)
            for row, w in zip(index.tolist(), weight.tolist(), strict=True):
                if w:
                    output = own(steps.x[row : row + 1].double() / scale)[0]
                    if len(output) == 1:
                        output = torch.cat([torch.zeros(1), output])
                    loss = loss - w * output.log_softmax(0)[steps.y[row]]
            loss = loss / weight.double().sum()
            optimizer.zero_grad()
            loss.backward()
            parameters = dict(own.named_parameters())
            gradient = layout.flatten({name: parameters[name].grad for name in layout.names})
            if work.clip_norm and gradient.norm() > work.clip_norm:
                gradient = gradient * (work.clip_norm / gradient.norm())
            if correction is not None:
                gradient = gradient + correction[site]
            at = layout.flatten(parameters)
            gradient = gradient + work.proximal * (at - (own_start if anchor is None else anchor))
            for name, part in layout.unflatten(gradient).items():
                parameters[name].grad = part
            optimizer.step()
            values.append(loss.item())
        deltas.append(layout.flatten(dict(own.named_parameters())) - own_start)
        losses.append(np.mean(values) if values else 0.0)
    return torch.stack(deltas), torch.tensor(np.array(losses))


def furthest(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).abs().max()) if a.numel() else 0.0


Make = Callable[[nn.Module, Layout], Kernel]
