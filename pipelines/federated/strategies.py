"""The published algorithms as strategies: each is a value, made of the local work that a task brings along."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace

from models.errors import BadInput
from pipelines.federated import personal
from pipelines.federated.fednova import FEDNOVA
from pipelines.federated.scaffold import SCAFFOLD
from pipelines.federated.server_optimizers import Adagrad, Adam, Momentum, Sgd, Yogi
from pipelines.federated.strategy import Strategy
from pipelines.federated.work import LocalWork


def fedavg(work: LocalWork, server_learning_rate: float = 1.0) -> Strategy:
    """McMahan et al., "Communication-efficient learning of deep networks from decentralized data", AISTATS 2017."""
    return Strategy(work, server=Sgd(server_learning_rate))


def fedsgd(work: LocalWork, server_learning_rate: float = 1.0) -> Strategy:
    """One step over all of a site's rows, the same paper's baseline: the mean is SGD on everybody's rows at once."""
    return Strategy(replace(work, epochs=1, batch_size=0), server=Sgd(server_learning_rate))


def fedprox(work: LocalWork, proximal: float = 0.1, server_learning_rate: float = 1.0) -> Strategy:
    """Li et al., "Federated optimization in heterogeneous networks", MLSys 2020. Their mu was 0.001 to 1."""
    return Strategy(replace(work, proximal=proximal), server=Sgd(server_learning_rate))


def fedavgm(work: LocalWork, server_learning_rate: float = 1.0, server_momentum: float = 0.9) -> Strategy:
    """Hsu, Qi and Brown, "Measuring the effects of non-identical data distribution for federated visual
    classification", 2019.
    """
    return Strategy(work, server=Momentum(server_learning_rate, server_momentum))


def fedadam(
    work: LocalWork,
    server_learning_rate: float = 0.01,
    beta1: float = 0.9,
    beta2: float = 0.99,
    adaptivity: float = 1e-3,
) -> Strategy:
    """Reddi et al., "Adaptive federated optimization", ICLR 2021, algorithm 2."""
    return Strategy(work, server=Adam(server_learning_rate, beta1, beta2, adaptivity))


def fedyogi(
    work: LocalWork,
    server_learning_rate: float = 0.01,
    beta1: float = 0.9,
    beta2: float = 0.99,
    adaptivity: float = 1e-3,
) -> Strategy:
    """The same paper, with Yogi's second moment."""
    return Strategy(work, server=Yogi(server_learning_rate, beta1, beta2, adaptivity))


def fedadagrad(
    work: LocalWork, server_learning_rate: float = 0.01, beta1: float = 0.0, adaptivity: float = 1e-3
) -> Strategy:
    """The same paper, with Adagrad's second moment."""
    return Strategy(work, server=Adagrad(server_learning_rate, beta1=beta1, adaptivity=adaptivity))


def scaffold(work: LocalWork, server_learning_rate: float = 1.0) -> Strategy:
    """Karimireddy et al., "SCAFFOLD: stochastic controlled averaging for federated learning", ICML 2020."""
    return Strategy(work, rule=SCAFFOLD, server=Sgd(server_learning_rate))


def fednova(work: LocalWork, server_learning_rate: float = 1.0) -> Strategy:
    """Wang et al., "Tackling the objective inconsistency problem in heterogeneous federated optimization", 2020."""
    return Strategy(work, rule=FEDNOVA, server=Sgd(server_learning_rate))


def ditto(work: LocalWork, pull: float = 0.1, server_learning_rate: float = 1.0) -> Strategy:
    """Li, Hu, Beirami and Smith, "Ditto: fair and robust federated learning through personalization", ICML 2021."""
    return Strategy(work, rule=personal.ditto(pull), server=Sgd(server_learning_rate))


STRATEGIES: Mapping[str, Callable[..., Strategy]] = {
    build.__name__: build
    for build in (fedavg, fedsgd, fedprox, fedavgm, fedadam, fedyogi, fedadagrad, scaffold, fednova, ditto)
}
"""By name: the local work, and an algorithm's own settings by keyword, → the strategy."""


def find_strategy(name: str, work: LocalWork, **settings: float) -> Strategy:
    """The strategy of that name. Raises BadInput for a name or a setting that does not exist."""
    if name not in STRATEGIES:
        raise BadInput(f"there is no strategy {name!r}; choose one of: {', '.join(STRATEGIES)}")
    own = [setting for setting in inspect.signature(STRATEGIES[name]).parameters if setting != "work"]
    unknown = [setting for setting in settings if setting not in own]
    if unknown:
        raise BadInput(f"strategy {name} has no setting {', '.join(unknown)}; it has: {', '.join(own)}")
    return STRATEGIES[name](work, **settings)
