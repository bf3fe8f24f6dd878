"""Models that a site keeps for itself: trained beside the shared one (Ditto), or fine-tuned from it, and how they
and a model of the site alone compare with the shared one, site by site.

Ditto: Li, Hu, Beirami and Smith, "Ditto: fair and robust federated learning through personalization", ICML 2021.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models.draws import draw_seed, seeds_of
from models.population import Ids, Population, Ragged
from models.scores import outputs_of, scores_of
from pipelines.federated.kernels.kernel import Kernel
from pipelines.federated.layout import Layout
from pipelines.federated.loss import example_losses
from pipelines.federated.parallel import Parallel
from pipelines.federated.rules import LocalRule, Sent, Turn
from pipelines.federated.steps import Steps, steps_of
from pipelines.federated.work import LocalWork


def ditto(pull: float) -> LocalRule:
    """Send the plain update; train a personal model over the same batches, pulled to the weights that were sent.

    pull: the paper's λ, the strength of that pull. The personal model is the site's memory "personal"; a site begins
    it with the weights of the first round it takes part in, which it knows by a memory of zeros.
    """
    return LocalRule(f"ditto({pull:g})", partial(_local, pull), memory=("personal",))


def _local(pull: float, turn: Turn) -> Sent:
    personal = personal_models(turn.seats.memory["personal"], turn.start)
    moved, _ = turn.train(personal, anchor=turn.start, proximal=pull)
    took_part = torch.from_numpy(turn.steps > 0)[:, None]
    turn.seats.memory["personal"] = torch.where(took_part, personal + moved, personal)
    return turn.train(turn.start)


def personal_models(memory: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The sites' personal models [sites, size] of Ditto's memory; `weights` [size] where a site has none yet."""
    return torch.where(memory.any(dim=1, keepdim=True), memory, weights)


def fine_tune(kernel: Kernel, start: torch.Tensor, steps: Steps, work: LocalWork) -> torch.Tensor:
    """Each site's own model [sites, size] after local training from `start` [size], or [sites, size]."""
    deltas, _ = kernel(start, steps, work, measure_loss=False)
    return start + deltas


@dataclass(frozen=True)
class SiteScores(Parallel):
    """One kind of model at each site, on rows held out there: rows, correct int64 [sites]; log_loss [sites], mean."""

    rows: NDArray[np.int64]
    correct: NDArray[np.int64]
    log_loss: NDArray[np.float64]

    @property
    def accuracy(self) -> NDArray[np.float64]:
        return self.correct / np.maximum(self.rows, 1)


def site_scores(model: nn.Module, layout: Layout, weights: torch.Tensor, held_out: Ragged) -> SiteScores:
    """weights: [size], one model for all sites, or [sites, size]."""
    correct, losses = np.zeros(len(held_out), dtype=np.int64), np.zeros(len(held_out))
    with torch.no_grad():
        for site in range(len(held_out)):
            x, y = held_out.client(site)
            if not len(y):
                continue
            own = layout.unflatten(weights if weights.dim() == 1 else weights[site])
            outputs = outputs_of(scores_of(model, own), x)
            found = outputs[:, 0] > 0 if outputs.shape[1] == 1 else outputs.argmax(dim=1)
            correct[site] = int((found == y).sum())
            losses[site] = float(example_losses(outputs, y).double().mean())
    return SiteScores(held_out.counts, correct, losses)


@dataclass(frozen=True)
class Personalisation:
    """scores: by kind of model ("global" and others), of the same clients [sites] that have rows held out."""

    clients: Ids
    scores: Mapping[str, SiteScores]

    def summary(self) -> dict[str, dict[str, float]]:
        """By kind of model, over sites: mean accuracy and log-loss, the mean accuracy of the tenth of the sites where
        it is lowest, and the shares of sites with a higher and with a lower accuracy than the global model's.
        """
        usual = self.scores["global"].accuracy
        worst = max(1, len(self.clients) // 10)
        return {
            kind: {
                "accuracy": float(own.accuracy.mean()),
                "log_loss": float(own.log_loss.mean()),
                "worst_decile": float(np.sort(own.accuracy)[:worst].mean()),
                "improved": float((own.accuracy > usual).mean()),
                "worsened": float((own.accuracy < usual).mean()),
            }
            for kind, own in self.scores.items()
        }


def compare(
    kernel: Kernel,
    model: nn.Module,
    population: Population,
    clients: Ids,
    weights: torch.Tensor,
    work: LocalWork,
    seed: int,
    *,
    untrained: torch.Tensor | None = None,
    personal: torch.Tensor | None = None,
) -> Personalisation:
    """The global model at each client against what it makes of it by `work` on its training rows ("fine_tuned"), by
    the same work from `untrained` [size] ("local"), and its memory of Ditto [clients, size] ("ditto").

    Clients without rows held out are left out. Raises ValueError where none is left.
    """
    layout = Layout.of_model(model)
    judged = np.flatnonzero(population.held_out(clients).counts)
    if not len(judged):
        raise ValueError(f"none of the {len(clients)} clients has rows held out")
    parts: dict[str, list[SiteScores]] = {}
    for first in range(0, len(judged), kernel.chunk):
        chunk = judged[first : first + kernel.chunk]
        held_out = population.held_out(clients[chunk])
        steps = steps_of(population.rows(clients[chunk]), work, seeds_of(draw_seed(seed, "personal"), clients[chunk]))
        kinds = {"global": weights, "fine_tuned": fine_tune(kernel, weights, steps, work)}
        if untrained is not None:
            kinds["local"] = fine_tune(kernel, untrained, steps, work)
        if personal is not None:
            kinds["ditto"] = personal_models(personal[torch.from_numpy(chunk)], weights)
        for kind, own in kinds.items():
            parts.setdefault(kind, []).append(site_scores(model, layout, own, held_out))
    return Personalisation(clients[judged], {kind: own[0].and_then(*own[1:]) for kind, own in parts.items()})
