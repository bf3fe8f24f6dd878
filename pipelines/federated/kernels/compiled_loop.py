"""The loop of the compiled kernel: local SGD of logistic and softmax models, in float32. numba is imported here alone.

Not all of fastmath: sums may run in any order, but infinities and NaN stay what they are, as a diverged client is
found by them.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from pipelines.federated.kernels.descent import TINY

_compile = numba.njit(cache=True, error_model="numpy", fastmath={"reassoc", "contract", "arcp", "nsz"})
_ONE = np.float32(1)

Numbers = NDArray[Any]
"""float32; of x also uint8."""


@_compile
def descend(
    x: Numbers,
    scale: np.float32,
    y: NDArray[np.int64],
    index: NDArray[np.int64],
    share: Numbers,
    steps: NDArray[np.int64],
    start: Numbers,
    correction: Numbers,
    anchor: Numbers,
    classes: int,
    biases: int,
    rate: np.float32,
    momentum: np.float32,
    clip: np.float32,
    proximal: np.float32,
    decay: np.float32,
    measure: bool,
    out: Numbers,
    losses: Numbers,
) -> None:
    """Deltas into `out` [sites, size], mean batch losses into `losses` [sites]; see `Steps` and `LocalWork`.

    x [rows, features], times scale; share [sites, steps, batch] or empty: 1/batch for each row; start, anchor: [1 or
    sites, size]; correction [sites, size] or empty. A site's weights are its biases, then [classes, features].
    """
    size, batch, features = start.shape[1], index.shape[2], x.shape[1]
    w, gradient, velocity = np.zeros(size, np.float32), np.zeros(size, np.float32), np.zeros(size, np.float32)
    delta = np.zeros((batch, classes), np.float32)
    # Views made once: a slice in the innermost loops would cost more than its arithmetic.
    weight = w[biases:].reshape((classes, features))
    by_weight = gradient[biases:].reshape((classes, features))
    for site in range(len(steps)):
        begin, pull = min(site, len(start) - 1), min(site, len(anchor) - 1)
        w[:] = start[begin]
        velocity[:] = 0
        for step in range(steps[site]):
            # All scores first, as the rows of a batch are then fetched from memory side by side.
            for place in range(batch):
                row = index[site, step, place]
                for k in range(classes):
                    total = np.float32(0)
                    for i in range(features):
                        total += weight[k, i] * np.float32(x[row, i])
                    delta[place, k] = total * scale + (w[k] if biases else np.float32(0))
            gradient[:] = 0
            for place in range(batch):
                row = index[site, step, place]
                portion = share[site, step, place] if len(share) else _ONE / np.float32(batch)
                if portion == 0:
                    continue
                loss = _derive(delta[place], y[row], measure)
                if measure:
                    losses[site] += portion * loss
                for k in range(classes):
                    factor = delta[place, k] * portion
                    if biases:
                        gradient[k] += factor
                    for i in range(features):
                        by_weight[k, i] += factor * scale * np.float32(x[row, i])
            if clip > 0:
                total = np.float32(0)
                for i in range(size):
                    total += gradient[i] * gradient[i]
                gradient *= min(_ONE, clip / max(np.sqrt(total), np.float32(TINY)))
            if len(correction):
                gradient += correction[site]
            if proximal != 0 or decay != 0:
                for i in range(size):
                    gradient[i] += proximal * (w[i] - anchor[pull, i]) + decay * w[i]
            for i in range(size):
                velocity[i] = momentum * velocity[i] + gradient[i]
                w[i] -= rate * velocity[i]
        if measure and steps[site]:
            losses[site] /= np.float32(steps[site])
        for i in range(size):
            out[site, i] = w[i] - start[begin, i]


@_compile
def descend_logistic(
    x: Numbers,
    scale: np.float32,
    y: NDArray[np.int64],
    index: NDArray[np.int64],
    share: Numbers,
    steps: NDArray[np.int64],
    start: Numbers,
    biases: int,
    rate: np.float32,
    measure: bool,
    out: Numbers,
    losses: Numbers,
) -> None:
    """The same for one output and bare SGD, a quarter of the time: without a gradient, LLVM vectorises the loops."""
    batch, features = index.shape[2], x.shape[1]
    w, delta = np.empty(features, np.float32), np.empty(batch, np.float32)
    for site in range(len(steps)):
        begin = min(site, len(start) - 1)
        bias = start[begin, 0] if biases else np.float32(0)
        for i in range(features):
            w[i] = start[begin, biases + i]
        for step in range(steps[site]):
            for place in range(batch):
                row, total = index[site, step, place], np.float32(0)
                for i in range(features):
                    total += w[i] * np.float32(x[row, i])
                delta[place] = total * scale + bias
            for place in range(batch):
                z, wanted = delta[place], np.float32(y[index[site, step, place]])
                portion = share[site, step, place] if len(share) else _ONE / np.float32(batch)
                if measure:
                    losses[site] += portion * _log_loss(z, wanted)
                delta[place] = rate * portion * (_ONE / (_ONE + np.exp(-z)) - wanted)
            for place in range(batch):
                row, move = index[site, step, place], delta[place]
                if biases:
                    bias -= move
                move *= scale
                for i in range(features):
                    w[i] -= move * np.float32(x[row, i])
        if measure and steps[site]:
            losses[site] /= np.float32(steps[site])
        if biases:
            out[site, 0] = bias - start[begin, 0]
        for i in range(features):
            out[site, biases + i] = w[i] - start[begin, biases + i]


@_compile
def _log_loss(z: np.float32, wanted: np.float32) -> np.float32:
    """log(1 + e^z) − wanted · z, without overflow."""
    return np.float32(max(z, np.float32(0)) + np.log1p(np.exp(-abs(z))) - wanted * z)


@_compile
def _derive(scores: Numbers, label: int, measure: bool) -> np.float32:
    """The scores [classes] of a row become the gradient of its loss; the loss, where it is measured."""
    loss = np.float32(0)
    if len(scores) == 1:
        z, wanted = scores[0], np.float32(label)
        if measure:
            loss = _log_loss(z, wanted)
        scores[0] = _ONE / (_ONE + np.exp(-z)) - wanted
        return loss
    top, total = scores.max(), np.float32(0)
    if measure:
        loss = top - scores[label]
    for k in range(len(scores)):
        scores[k] = np.exp(scores[k] - top)
        total += scores[k]
    for k in range(len(scores)):
        scores[k] /= total
    scores[label] -= _ONE
    return loss + np.log(total) if measure else loss
