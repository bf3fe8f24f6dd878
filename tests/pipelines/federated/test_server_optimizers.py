"""Each server optimizer against its paper's formula, written out in numpy float64."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipelines.federated.server_optimizers import Adagrad, Adam, Adaptive, Momentum, ServerOptimizer, Sgd, Yogi

SERVER_OPTIMIZERS = {"sgd": Sgd, "momentum": Momentum, "adam": Adam, "yogi": Yogi, "adagrad": Adagrad}


def formula(optimizer: ServerOptimizer, x: NDArray[np.float64], updates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Reddi et al., 2021, algorithm 2; Hsu et al., 2019, section 3; McMahan et al., 2017, algorithm 1."""
    x = x.copy()
    m = np.zeros_like(x)
    v = np.full_like(x, getattr(optimizer, "adaptivity", 0.0) ** 2)
    for delta in updates:
        match optimizer:
            case Sgd(rate):
                x += rate * delta
                continue
            case Momentum(rate, momentum):
                m = momentum * m + delta
                x += rate * m
                continue
            case Adaptive("adam", rate, beta1, beta2, tau):
                v = beta2 * v + (1 - beta2) * delta**2
            case Adaptive("yogi", rate, beta1, beta2, tau):
                v = v - (1 - beta2) * delta**2 * np.sign(v - delta**2)
            case Adaptive("adagrad", rate, beta1, _, tau):
                v = v + delta**2
        m = beta1 * m + (1 - beta1) * delta
        x += rate * m / (np.sqrt(v) + tau)
    return x


@given(st.sampled_from(sorted(SERVER_OPTIMIZERS)), st.integers(0, 2**32 - 1), st.floats(1e-3, 10.0))
def test_twenty_steps_are_the_papers_formula(kind: str, seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    optimizer = SERVER_OPTIMIZERS[kind](learning_rate=float(rng.uniform(0.01, 1.0)))
    x, updates = rng.normal(size=5), scale * rng.normal(size=(20, 5))
    parameters = {"w": torch.tensor(x[:4]).view(2, 2), "b": torch.tensor(x[4:])}
    moments = optimizer.start(parameters)
    for delta in updates:
        update = {"w": torch.tensor(delta[:4]).view(2, 2), "b": torch.tensor(delta[4:])}
        parameters, moments = optimizer.step(parameters, update, moments)
    flat = torch.cat([parameters["w"].flatten(), parameters["b"]]).numpy()
    assert np.allclose(flat, formula(optimizer, x, updates), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", SERVER_OPTIMIZERS)
def test_a_step_changes_nothing_that_came_in(kind: str) -> None:
    optimizer = SERVER_OPTIMIZERS[kind]()
    parameters = {"w": torch.tensor([1.0, -2.0])}
    moments = optimizer.start(parameters)
    before = pickle.dumps((parameters, moments))
    moved, later = optimizer.step(parameters, {"w": torch.tensor([0.5, 0.25])}, moments)
    assert pickle.dumps((parameters, moments)) == before
    assert not torch.equal(moved["w"], parameters["w"])
    assert set(later) == set(moments)


@pytest.mark.parametrize("kind", SERVER_OPTIMIZERS)
def test_no_update_from_rest_moves_nothing(kind: str) -> None:
    optimizer = SERVER_OPTIMIZERS[kind]()
    parameters = {"w": torch.tensor([1.0, -2.0])}
    moved, _ = optimizer.step(parameters, {"w": torch.zeros(2)}, optimizer.start(parameters))
    assert torch.equal(moved["w"], parameters["w"])


def test_a_name_tells_every_setting() -> None:
    assert Sgd(0.5).name == "sgd(0.5)"
    assert Adam().name == "adam(0.01, 0.9, 0.99, 0.001)"
    assert Adagrad().name == "adagrad(0.01, 0, 0.001)"
    every = [Sgd(), Momentum(), Momentum(1.0, 0.5), Adam(), Adam(0.1), Yogi(), Adagrad(), Adagrad(beta1=0.9)]
    assert len({optimizer.name for optimizer in every}) == len(every)
    assert [pickle.loads(pickle.dumps(o)) for o in every] == every  # noqa: S301 (our own bytes)
