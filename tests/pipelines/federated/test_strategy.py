"""FedAvg and FedAdam against their papers' formulas, written out independently in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_sites import LABELLING, initial, make_engine
from torch.nn.functional import cross_entropy

from models.draws import draw_seed
from models.images import read_image
from pipelines.federated.fednova import FEDNOVA
from pipelines.federated.jobs import Parameters
from pipelines.federated.personal import ditto
from pipelines.federated.plan import TrainingPlan
from pipelines.federated.reducers import MEDIAN
from pipelines.federated.scaffold import SCAFFOLD
from pipelines.federated.server_optimizers import Adam, Sgd
from pipelines.federated.stages import ClipByNorm
from pipelines.federated.strategy import Strategy
from pipelines.federated.training import train
from pipelines.federated.work import LocalWork


def plain_fedavg(engine, snapshots, work: LocalWork, rounds: int, seed: int) -> dict[str, np.ndarray]:  # type: ignore[no-untyped-def]
    """McMahan et al., 2017, algorithm 1 with full participation, as a loop over numpy-like float64 tensors."""
    server = {name: tensor.double() for name, tensor in initial().items()}
    for number in range(1, rounds + 1):
        updates, sizes = [], []
        for name, site in engine.sites.items():
            table = site.store.rows(snapshots[name], "train")
            x = torch.stack(
                [torch.from_numpy(read_image(png, site.task.input).transpose(2, 0, 1) / 255.0) for png in table["png"]]
            )
            y = torch.tensor(site.store.truth(table["row_id"]).to_numpy(dtype=np.int64))
            weight = server["1.weight"].clone().requires_grad_()
            bias = server["1.bias"].clone().requires_grad_()
            rng = np.random.default_rng(draw_seed(seed, number, name))
            for _ in range(work.epochs):
                order = rng.permutation(len(y))
                for start in range(0, len(y), work.batch_size):
                    part = order[start : start + work.batch_size]
                    loss = cross_entropy(x[part].flatten(1) @ weight.T + bias, y[part])
                    gradients = torch.autograd.grad(loss, (weight, bias))
                    with torch.no_grad():
                        weight -= work.learning_rate * gradients[0]
                        bias -= work.learning_rate * gradients[1]
            updates.append((weight.detach(), bias.detach()))
            sizes.append(len(y))
        share = np.array(sizes) / sum(sizes)
        server = {
            "1.weight": sum((s * w for s, (w, _) in zip(share, updates, strict=True)), torch.zeros(3, 64).double()),
            "1.bias": sum((s * b for s, (_, b) in zip(share, updates, strict=True)), torch.zeros(3).double()),
        }
    return {name: tensor.numpy() for name, tensor in server.items()}


@pytest.mark.parametrize("stacked", [True, False])
def test_fedavg_is_the_papers_loop(tmp_path: Path, stacked: bool) -> None:
    engine, snapshots = make_engine(tmp_path, {"a": 7, "b": 20, "c": 13}, stacked)
    work = LocalWork(epochs=2, batch_size=5, learning_rate=0.3)
    state = train(TrainingPlan((LABELLING,), snapshots, 5, 9, Strategy(work)), initial(), engine, tmp_path / "states")
    expected = plain_fedavg(engine, snapshots, work, 5, 9)
    for name, tensor in state.parameters.items():
        assert np.abs(tensor.numpy() - expected[name]).max() < 1e-5
        assert np.abs(tensor.numpy() - initial()[name].numpy()).max() > 0.01, "nothing was learned"


def test_server_sgd_adds_the_scaled_update() -> None:
    optimizer = Sgd(0.5)
    parameters, update = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([0.2, -4.0])}
    moved, moments = optimizer.step(parameters, update, optimizer.start(parameters))
    assert torch.allclose(moved["w"], torch.tensor([1.1, 0.0]))
    assert moments == {}
    assert torch.equal(parameters["w"], torch.tensor([1.0, 2.0]))


def test_server_adam_is_the_papers_algorithm_two() -> None:
    rate, beta1, beta2, tau = 0.1, 0.9, 0.99, 1e-3
    optimizer = Adam(rate, beta1, beta2, tau)
    rng = np.random.default_rng(0)
    x = rng.normal(size=5)
    m, v = np.zeros(5), np.full(5, tau**2)
    parameters: Parameters = {"w": torch.tensor(x, dtype=torch.float64)}
    moments = optimizer.start(parameters)
    for _ in range(20):
        delta = rng.normal(size=5)
        m = beta1 * m + (1 - beta1) * delta
        v = beta2 * v + (1 - beta2) * delta**2
        x = x + rate * m / (np.sqrt(v) + tau)
        parameters, moments = optimizer.step(parameters, {"w": torch.tensor(delta)}, moments)
        assert np.allclose(parameters["w"].numpy(), x, rtol=0, atol=1e-12)


def test_strategies_that_differ_anywhere_describe_themselves_differently() -> None:
    strategies = [
        Strategy(),
        Strategy(LocalWork(epochs=3)),
        Strategy(LocalWork(proximal=0.1)),
        Strategy(LocalWork(updates=7)),
        Strategy(rule=SCAFFOLD),
        Strategy(rule=FEDNOVA),
        Strategy(rule=ditto(0.1)),
        Strategy(rule=ditto(0.2)),
        Strategy(reducer=MEDIAN),
        Strategy(stages=(ClipByNorm(1.0),)),
        Strategy(stages=(ClipByNorm(2.0),)),
        Strategy(stages=(ClipByNorm(1.0), ClipByNorm(2.0))),
        Strategy(stages=(ClipByNorm(2.0), ClipByNorm(1.0))),
        Strategy(server=Sgd(0.5)),
        Strategy(server=Adam(0.5)),
        Strategy(server=Adam(0.5, beta1=0.5)),
        Strategy(server=Adam(0.5, adaptivity=0.1)),
    ]
    described = [repr(strategy.describe()) for strategy in strategies]
    assert len(set(described)) == len(described)
