"""How good outputs are: from a way to score rows to a few figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.func import functional_call

Scores = Callable[[torch.Tensor], torch.Tensor]
"""x float32 [n, ...] -> outputs [n, classes], or log-odds [n, 1]. Images come scaled to [0, 1]."""

CHUNK = 500
"""Rows scored at a time: what a convolution keeps of them stays small."""


def scores_of(model: nn.Module, parameters: Mapping[str, torch.Tensor]) -> Scores:
    """How a model scores rows with these parameters in place of its own."""

    def scores(x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(functional_call(model, dict(parameters), (x,)))

    return scores


def outputs_of(scores: Scores, x: torch.Tensor) -> torch.Tensor:
    """float32 [rows, outputs] of x [rows, ...]; uint8 is scaled to [0, 1] first."""
    chunk = len(x) if x.ndim == 2 else CHUNK
    parts = torch.split(x, max(chunk, 1))
    with torch.no_grad():
        return torch.cat([scores(part.float().div_(255.0) if part.dtype == torch.uint8 else part) for part in parts])


def rank_auc(scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> float:
    """The chance that a positive row scores above a negative one, ties counting half (Mann and Whitney, 1947).

    scores, positive: [rows]; nan where there are none of either. The same number as scikit-learn's, whose import takes
    as long as all else in a small simulation.
    """
    wanted, others = int(positive.sum()), int((~positive).sum())
    if not wanted or not others:
        return float("nan")
    _, place, times = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(times) - (times - 1) / 2
    return float((ranks[place[positive]].sum() - wanted * (wanted + 1) / 2) / (wanted * others))


def mean_auc(chances: NDArray[np.floating], truth: NDArray[np.integer]) -> float:
    """Of [rows, classes]: for two classes the AUC of class 1, else the mean of each against the rest; nan where a class
    is absent.
    """
    judged = [1] if chances.shape[1] == 2 else range(chances.shape[1])
    return float(np.mean([rank_auc(chances[:, each], truth == each) for each in judged]))


def binary_quality(odds: torch.Tensor, y: torch.Tensor) -> dict[str, float]:
    """accuracy, AUC and log-loss of log-odds [rows] against y [rows] of 0 and 1."""
    odds = odds.double()
    loss = torch.nn.functional.binary_cross_entropy_with_logits(odds, y.double())
    return {
        "accuracy": float(((odds > 0) == (y == 1)).double().mean()),
        "auc": rank_auc(odds.numpy(), (y == 1).numpy()),
        "log_loss": float(loss),
    }


def class_quality(outputs: torch.Tensor, y: torch.Tensor) -> dict[str, float]:
    """accuracy, AUC (see `mean_auc`) and log-loss of [rows, classes]."""
    chances = torch.softmax(outputs.double(), dim=1).numpy()
    truth = y.numpy()
    return {
        "accuracy": float((chances.argmax(axis=1) == truth).mean()),
        "auc": mean_auc(chances, truth),
        "log_loss": float(torch.nn.functional.cross_entropy(outputs.double(), y)),
    }
