"""What the server does with the round's update: one optimizer step, with the update as the ascent direction (end
minus start of the local work), so that `-update` is the pseudo-gradient.

Momentum is FedAvgM (Hsu, Qi and Brown, "Measuring the effects of non-identical data distribution for federated visual
classification", 2019). Adam, Yogi and Adagrad are algorithm 2 of Reddi et al., "Adaptive federated optimization",
ICLR 2021: without bias correction, from v = tau², with `adaptivity` its tau.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

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
class Adaptive:
    """FedAdam, FedYogi and FedAdagrad: m = beta1 · m + (1 - beta1) · update; w += learning_rate · m / (√v + tau).

    They differ in v, the running square of the update: see `_second`.
    """

    method: Literal["adam", "yogi", "adagrad"]
    learning_rate: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99  # Adagrad, which forgets nothing, has none
    adaptivity: float = 1e-3

    @property
    def name(self) -> str:
        betas = (self.beta1,) if self.method == "adagrad" else (self.beta1, self.beta2)
        return f"{self.method}({', '.join(f'{value:g}' for value in (self.learning_rate, *betas, self.adaptivity))})"

    def start(self, parameters: Parameters) -> Moments:
        return {
            "first": {n: torch.zeros_like(t) for n, t in parameters.items()},
            "second": {n: torch.full_like(t, self.adaptivity**2) for n, t in parameters.items()},
        }

    def step(self, parameters: Parameters, update: Parameters, moments: Moments) -> tuple[Parameters, Moments]:
        first = {n: self.beta1 * m + (1 - self.beta1) * update[n] for n, m in moments["first"].items()}
        second = {n: self._second(v, update[n].square()) for n, v in moments["second"].items()}
        rate, tau = self.learning_rate, self.adaptivity
        moved = {n: t + rate * first[n] / (second[n].sqrt() + tau) for n, t in parameters.items()}
        return moved, {"first": first, "second": second}

    def _second(self, v: torch.Tensor, square: torch.Tensor) -> torch.Tensor:
        if self.method == "adam":
            return self.beta2 * v + (1 - self.beta2) * square
        if self.method == "yogi":  # v grows no faster than additively
            return v - (1 - self.beta2) * square * torch.sign(v - square)
        return v + square


Adam = partial(Adaptive, "adam")
Yogi = partial(Adaptive, "yogi")
Adagrad = partial(Adaptive, "adagrad", beta1=0.0)  # as in the paper's experiments
