"""What every peer must compute: models, data and initial weights, from a seed, with numpy alone.

Each peer's environment imports this file. All work is FedAvg by example counts: every client of the cohort starts from
the server's weights, makes one epoch of plain SGD in batches of ten rows in the order in which they are stored, and
the server adds `sum_k n_k (w_k - w) / sum_k n_k`. A flat vector of weights is the concatenation of the parameters in
the order and orientation of torch's `state_dict` (a matrix is [out, in], a kernel [out, in, height, width]).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

SEED = 20
BATCH = 10


@dataclass(frozen=True)
class Parameter:
    name: str
    shape: tuple[int, ...]
    macs: int = 0  # multiplications and additions of one example's forward pass; 0 where they do not count


@dataclass(frozen=True)
class Workload:
    """`classes` is 1 for one logit with binary cross-entropy, else softmax cross-entropy; losses are batch means."""

    name: str
    says: str
    population: int
    cohort: int
    examples: int
    learning_rate: float
    input: tuple[int, ...]
    classes: int
    parameters: tuple[Parameter, ...]
    kinks: bool = False

    @property
    def checked(self) -> int:
        """Examples of a client on which implementations must agree to the last digits.

        With ReLU and max-pooling float32 itself leaves the path after some hundred examples: a unit within rounding
        of zero goes the other way, and so do the steps after it. So there the first two batches must agree exactly.
        """
        return 2 * BATCH if self.kinks else self.examples

    @property
    def size(self) -> int:
        return sum(prod(parameter.shape) for parameter in self.parameters)

    @property
    def flops(self) -> int:
        """Of one client update: forward, gradient of the weights, gradient of the inputs but the first layer's."""
        macs = [parameter.macs for parameter in self.parameters if parameter.macs]
        return 2 * (3 * sum(macs) - macs[0]) * self.examples


def _affine(name: str, outputs: int, inputs: int) -> tuple[Parameter, ...]:
    dotted = f"{name}." if name else ""
    return Parameter(f"{dotted}weight", (outputs, inputs), outputs * inputs), Parameter(f"{dotted}bias", (outputs,))


def _conv(name: str, outputs: int, inputs: int, kernel: int, positions: int) -> tuple[Parameter, ...]:
    macs = outputs * inputs * kernel * kernel * positions
    return Parameter(f"{name}.weight", (outputs, inputs, kernel, kernel), macs), Parameter(f"{name}.bias", (outputs,))


def _norm(name: str, channels: int) -> tuple[Parameter, ...]:
    return Parameter(f"{name}.weight", (channels,)), Parameter(f"{name}.bias", (channels,))


def _triggering(name: str, population: int, cohort: int) -> Workload:
    says = f"logistic regression, 64 features, 20 examples, cohort {cohort:,}"
    return Workload(name, says, population, cohort, 20, 0.1, (64,), 1, _affine("", 1, 64))


WORKLOADS = {
    workload.name: workload
    for workload in (
        _triggering("lr100", 1_000, 100),
        _triggering("lr5000", 10_000, 5_000),
        Workload(
            "mlp2nn", "McMahan's 2NN, 199k weights, 600 examples, cohort 10",
            40, 10, 600, 0.1, (784,), 10,
            (*_affine("0", 200, 784), *_affine("2", 200, 200), *_affine("4", 10, 200)),
            kinks=True,
        ),
        Workload(
            "cnn", "McMahan's CNN, 1.66M weights, 100 examples, cohort 10",
            40, 10, 100, 0.05, (1, 28, 28), 10,
            (*_conv("0", 32, 1, 5, 28 * 28), *_conv("3", 64, 32, 5, 14 * 14),
             *_affine("7", 512, 3136), *_affine("9", 10, 512)),
            kinks=True,
        ),
        Workload(
            # pfl-research's own CIFAR10 model ("simple_cnn", unpadded convolutions), without its dropout.
            "cifar", "pfl's CIFAR10 CNN, 1.63M weights, 50 examples, cohort 50",
            100, 50, 50, 0.05, (3, 32, 32), 10,
            (*_conv("0", 32, 3, 3, 30 * 30), *_conv("2", 64, 32, 3, 28 * 28),
             *_affine("6", 128, 12544), *_affine("8", 10, 128)),
            kinks=True,
        ),
        Workload(
            # A user's own module: residual blocks (norm, 3x3 convolution, GELU, 3x3 convolution, skip) on 4x4 patches.
            "any_module", "a user's residual network, 38k weights, 100 examples, cohort 20",
            100, 20, 100, 0.05, (1, 28, 28), 10,
            (*_conv("stem", 32, 1, 4, 49),
             *_norm("first.norm", 32), *_conv("first.widen", 32, 32, 3, 49), *_conv("first.mix", 32, 32, 3, 49),
             *_norm("second.norm", 32), *_conv("second.widen", 32, 32, 3, 49), *_conv("second.mix", 32, 32, 3, 49),
             *_norm("norm", 32), *_affine("head", 10, 32)),
        ),
    )
}  # fmt: skip


def data(workload: Workload, clients: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The first `clients` clients (default: all): x [clients, examples, *input] float32, y [clients, examples].

    Labels are random: 0.0 or 1.0 for one logit, else int64 classes. Pixels spread as much as those of MNIST.
    """
    count = workload.population if clients is None else clients
    x = np.empty((count, workload.examples, *workload.input), np.float32)
    y = np.empty((count, workload.examples), np.float32 if workload.classes == 1 else np.int64)
    scale = np.float32(1.0 if workload.classes == 1 else 0.3)
    for client in range(count):
        rng = np.random.default_rng((SEED, client))
        x[client] = rng.standard_normal(x.shape[1:], np.float32) * scale
        y[client] = rng.integers(0, max(2, workload.classes), workload.examples)
    return x, y


def initial(workload: Workload) -> dict[str, np.ndarray]:
    """Uniform within the inverse root of the fan-in; norms start as the identity."""
    rng = np.random.default_rng(SEED)
    values: dict[str, np.ndarray] = {}
    fan_in = 1
    for parameter in workload.parameters:
        if "norm" in parameter.name:
            values[parameter.name] = np.full(parameter.shape, parameter.name.endswith("weight"), np.float32)
            continue
        if parameter.macs:
            fan_in = prod(parameter.shape[1:])
        bound = fan_in**-0.5
        values[parameter.name] = rng.uniform(-bound, bound, parameter.shape).astype(np.float32)
    return values


def flat(values: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([np.ravel(value) for value in values.values()])


def unflat(workload: Workload, vector: np.ndarray) -> dict[str, np.ndarray]:
    values, at = {}, 0
    for parameter in workload.parameters:
        size = prod(parameter.shape)
        values[parameter.name] = vector[at : at + size].reshape(parameter.shape)
        at += size
    return values
