"""What the server does with the round's update: one optimizer step, with the update as the ascent direction (end
minus start of the local work), so that `-update` is the pseudo-gradient.

Momentum is FedAvgM (Hsu, Qi and Brown, "Measuring the effects of non-identical data distribution for federated visual
classification", 2019). Adam, Yogi and Adagrad are algorithm 2 of Reddi et al., "Adaptive federated optimization",
ICLR 2021: without bias correction, from v = tau², with `adaptivity` its tau.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from pipelines.federated.jobs import Parameters

Moments = dict[str, Parameters]
"""A server optimizer's state, by the name of the moment."""


class ServerOptimizer(Protocol):
    """State in, state out: neither the parameters nor the moments that come in are changed."""

    @property
    def name(self) -> str: ...

    def start(self, parameters: Parameters) -> Moments:
        """The moments before the first round."""
        ...

    def step(self, parameters: Parameters, update: Parameters, moments: Moments) -> tuple[Parameters, Moments]: ...


@dataclass(frozen=True)
class Sgd:
    """Add the update, scaled; with 1.0 this is FedAvg."""

    learning_rate: float = 1.0

    @property
    def name(self) -> str:
        return f"sgd({self.learning_rate:g})"

    def start(self, parameters: Parameters) -> Moments:
        return {}

    def step(self, parameters: Parameters, update: Parameters, moments: Moments) -> tuple[Parameters, Moments]:
        return {n: torch.add(t, update[n], alpha=self.learning_rate) for n, t in parameters.items()}, moments


@dataclass(frozen=True)
class Momentum:
    """FedAvgM: v = momentum · v + update; w += learning_rate · v."""

    learning_rate: float = 1.0
    momentum: float = 0.9

    @property
    def name(self) -> str:
        return f"momentum({self.learning_rate:g}, {self.momentum:g})"

    def start(self, parameters: Parameters) -> Moments:
        return {"velocity": {n: torch.zeros_like(t) for n, t in parameters.items()}}

    def step(self, parameters: Parameters, update: Parameters, moments: Moments) -> tuple[Parameters, Moments]:
        velocity = {n: self.momentum * v + update[n] for n, v in moments["velocity"].items()}
        return {n: t + self.learning_rate * velocity[n] for n, t in parameters.items()}, {"velocity": velocity}


@dataclass(frozen=True)
class Adam:
    """FedAdam: v = beta2 · v + (1 - beta2) · update²."""

    learning_rate: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    adaptivity: float = 1e-3

    @property
    def name(self) -> str:
        return f"adam({self.learning_rate:g}, {self.beta1:g}, {self.beta2:g}, {self.adaptivity:g})"

    def start(self, parameters: Parameters) -> Moments:
        return _two_moments(parameters, self.adaptivity)

    def step(self, parameters: Parameters, update: Parameters, moments: Moments) -> tuple[Parameters, Moments]:
        second = {n: self.beta2 * v + (1 - self.beta2) * update[n].square() for n, v in moments["second"].items()}
        return _adaptive_step(self, parameters, update, moments, second)


@dataclass(frozen=True)
class Yogi:
    """FedYogi: v -= (1 - beta2) · update² · sign(v - update²), so that v grows no faster than additively."""

    learning_rate: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    adaptivity: float = 1e-3

    @property
    def name(self) -> str:
        return f"yogi({self.learning_rate:g}, {self.beta1:g}, {self.beta2:g}, {self.adaptivity:g})"

    def start(self, parameters: Parameters) -> Moments:
        return _two_moments(parameters, self.adaptivity)

    def step(self, parameters: Parameters, update: Parameters, moments: Moments) -> tuple[Parameters, Moments]:
        def towards(v: torch.Tensor, square: torch.Tensor) -> torch.Tensor:
            return v - (1 - self.beta2) * square * torch.sign(v - square)

        second = {n: towards(v, update[n].square()) for n, v in moments["second"].items()}
        return _adaptive_step(self, parameters, update, moments, second)


@dataclass(frozen=True)
class Adagrad:
    """FedAdagrad: v += update². The paper's experiments take beta1 = 0."""

    learning_rate: float = 0.01
    beta1: float = 0.0
    adaptivity: float = 1e-3

    @property
    def name(self) -> str:
        return f"adagrad({self.learning_rate:g}, {self.beta1:g}, {self.adaptivity:g})"

    def start(self, parameters: Parameters) -> Moments:
        return _two_moments(parameters, self.adaptivity)

    def step(self, parameters: Parameters, update: Parameters, moments: Moments) -> tuple[Parameters, Moments]:
        second = {n: v + update[n].square() for n, v in moments["second"].items()}
        return _adaptive_step(self, parameters, update, moments, second)


def _two_moments(parameters: Parameters, adaptivity: float) -> Moments:
    return {
        "first": {n: torch.zeros_like(t) for n, t in parameters.items()},
        "second": {n: torch.full_like(t, adaptivity**2) for n, t in parameters.items()},
    }


def _adaptive_step(
    rule: Adam | Yogi | Adagrad, parameters: Parameters, update: Parameters, moments: Moments, second: Parameters
) -> tuple[Parameters, Moments]:
    """m = beta1 · m + (1 - beta1) · update; w += learning_rate · m / (√v + tau)."""
    first = {n: rule.beta1 * m + (1 - rule.beta1) * update[n] for n, m in moments["first"].items()}
    rate, tau = rule.learning_rate, rule.adaptivity
    moved = {n: t + rate * first[n] / (second[n].sqrt() + tau) for n, t in parameters.items()}
    return moved, {"first": first, "second": second}


SERVER_OPTIMIZERS: Mapping[str, Callable[..., ServerOptimizer]] = {
    "sgd": Sgd,
    "momentum": Momentum,
    "adam": Adam,
    "yogi": Yogi,
    "adagrad": Adagrad,
}
