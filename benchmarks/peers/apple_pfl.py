"""pfl-research: SimulatedBackend, FederatedAveraging and PyTorchModel, alone or as two of its worker processes.

Settings in its favour: user data sets are built once and keep their batches, no evaluation, no printing of metrics.
Two processes are pfl's own distributed simulation over torch.distributed (gloo); the second is started here, and
hears from the first how many rounds come next.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import numpy as np
import protocol
import torch
from workloads import BATCH, Workload, data


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def simulation(workload: Workload):
    """A function of a number of rounds from the initial weights, which gives their seconds and the final weights."""
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.aggregate.weighting import WeightByDatapoints
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.pytorch import PyTorchTensorDataset
    from pfl.data.sampling import MinimizeReuseUserSampler
    from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
    from pfl.metrics import Metrics, Weighted
    from pfl.model.pytorch import PyTorchModel
    from torch_models import flat_of, loss_of, model_of

    class Net(torch.nn.Module):
        """A module with the two methods that PyTorchModel asks for."""

        def __init__(self) -> None:
            super().__init__()
            self.net = model_of(workload)

        def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return loss_of(workload, self.net(x), y)

        @torch.no_grad()
        def metrics(self, x: torch.Tensor, y: torch.Tensor):
            return {"loss": Weighted(self.loss(x, y).item() * len(y), len(y))}

    class Stop(TrainingProcessCallback):
        """Ends a run after `left` rounds; the first round of an algorithm evaluates, so it is not among the timed."""

        left = 0

        def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
            self.left -= 1
            return self.left == 0, Metrics()

    x, y = map(torch.from_numpy, data(workload))
    users = {user: PyTorchTensorDataset((x[user], y[user]), user_id=str(user)) for user in range(workload.population)}
    net = Net()
    model = PyTorchModel(net, torch.optim.SGD, torch.optim.SGD(net.parameters(), lr=1.0))
    first = model.get_parameters()
    begin = flat_of(net).copy()
    algorithm_params = NNAlgorithmParams(
        central_num_iterations=10**9,
        evaluation_frequency=10**9,
        train_cohort_size=workload.cohort,
        val_cohort_size=None,
    )

    class Simulation:
        def __init__(self) -> None:
            # pfl draws from the global generator, which must be alike in every process.
            np.random.seed(0)  # noqa: NPY002
            dataset = FederatedDataset(users.__getitem__, MinimizeReuseUserSampler([*users]))
            self.backend = SimulatedBackend(dataset, dataset, postprocessors=[WeightByDatapoints()])
            self.algorithm, self.stop = FederatedAveraging(), Stop()

        def rounds(self, count: int, examples: int) -> float:
            training = NNTrainHyperParams(
                local_batch_size=BATCH,
                local_num_epochs=1 if examples == workload.examples else None,
                local_num_steps=None if examples == workload.examples else examples // BATCH,
                local_learning_rate=workload.learning_rate,
            )
            model.set_parameters(first)
            self.stop.left = count
            began = time.perf_counter()
            self.algorithm.run(
                algorithm_params,
                self.backend,
                model,
                training,
                NNEvalHyperParams(local_batch_size=BATCH),
                callbacks=[self.stop],
                send_metrics_to_platform=False,
            )
            return time.perf_counter() - began

        def change(self) -> np.ndarray:
            return flat_of(net) - begin

    return Simulation


def main() -> None:
    workload, arguments, answers = protocol.start()
    os.environ["PFL_PYTORCH_DEVICE"] = "cpu"
    torch.set_num_threads(arguments.threads)
    leads, others = "PFL_WORKER_RANK" not in os.environ, []
    if leads and arguments.processes > 1:
        addresses = ",".join(f"127.0.0.1:{free_port()}" for _ in range(arguments.processes))
        os.environ.update(PFL_WORKER_ADDRESSES=addresses, PFL_WORKER_RANK="0")
        for rank in range(1, arguments.processes):
            environment = {**os.environ, "PFL_WORKER_RANK": str(rank)}
            others.append(
                subprocess.Popen([sys.executable, *sys.argv], stdin=subprocess.PIPE, text=True, env=environment)
            )
    new = simulation(workload)
    going = new()

    def rounds(count: int, examples: int = workload.examples) -> float:
        """`count` = 0: a new simulation's first round, whose sampler begins with user 0."""
        nonlocal going
        for other in others:
            other.stdin.write(f"{count} {examples}\n")
            other.stdin.flush()
        if not count:
            going = new()
        return going.rounds(max(1, count), examples)

    def aggregate(examples: int) -> np.ndarray:
        rounds(0, examples)
        return going.change()

    if not leads:
        for line in sys.stdin:
            rounds(*map(int, line.split()))
        return
    import pfl.version

    ready = {
        "threads": arguments.threads,
        "processes": arguments.processes,
        "versions": {"pfl": pfl.version.__version__, "torch": torch.__version__},
        "settings": "SimulatedBackend, FederatedAveraging, PyTorchModel; user data sets built once; no evaluation",
    }
    protocol.serve(workload, answers, ready, aggregate, protocol.planned(rounds, workload.cohort))
    for other in others:
        other.stdin.close()
        other.wait()


if __name__ == "__main__":
    main()
