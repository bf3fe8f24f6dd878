"""How good outputs are: from a way to score rows to a few figures."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

Scores = Callable[[torch.Tensor], torch.Tensor]
"""x float32 [n, ...] -> outputs [n, classes], or log-odds [n, 1]. Images come scaled to [0, 1]."""

CHUNK = 500
"""Rows scored at a time: what a convolution keeps of them stays small."""


def outputs_of(scores: Scores, x: torch.Tensor) -> torch.Tensor:
    """float32 [rows, outputs] of x [rows, ...]; uint8 is scaled to [0, 1] first."""
    chunk = len(x) if x.ndim == 2 else CHUNK
    parts = torch.split(x, max(chunk, 1))
    with torch.no_grad():
        return torch.cat([scores(part.float().div_(255.0) if part.dtype == torch.uint8 else part) for part in parts])


def binary_quality(odds: torch.Tensor, y: torch.Tensor) -> dict[str, float]:
    """accuracy, AUC and log-loss of log-odds [rows] against y [rows] of 0 and 1."""
    from sklearn.metrics import roc_auc_score

    odds = odds.double()
    loss = torch.nn.functional.binary_cross_entropy_with_logits(odds, y.double())
    both = 0 < int(y.sum()) < len(y)
    return {
        "accuracy": float(((odds > 0) == (y == 1)).double().mean()),
        "auc": float(roc_auc_score(y.numpy(), odds.numpy())) if both else float("nan"),
        "log_loss": float(loss),
    }


def class_quality(outputs: torch.Tensor, y: torch.Tensor) -> dict[str, float]:
    """accuracy, AUC (one against the rest, where there are more than two) and log-loss of [rows, classes]."""
    from sklearn.metrics import roc_auc_score

    chances = torch.softmax(outputs.double(), dim=1).numpy()
    truth = y.numpy()
    positive = chances[:, 1] if chances.shape[1] == 2 else chances
    every = len(np.unique(truth)) == chances.shape[1]
    return {
        "accuracy": float((chances.argmax(axis=1) == truth).mean()),
        "auc": float(roc_auc_score(truth, positive, multi_class="ovr")) if every else float("nan"),
        "log_loss": float(torch.nn.functional.cross_entropy(outputs.double(), y)),
    }
