"""The peer that needs no framework: the loop over clients that a reader would write with PyTorch.

With several processes, each trains its share of the cohort, and weights and sums lie in shared memory.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from multiprocessing.connection import Connection

import numpy as np
import protocol
import torch
from torch import multiprocessing
from torch_models import flat_of, loss_of, model_of
from workloads import BATCH, Workload, data, unflat

Weights = dict[str, torch.Tensor]


class Clients:
    """The population in memory, and one model to train them with."""

    def __init__(self, workload: Workload) -> None:
        self.workload, self.model = workload, model_of(workload)
        self.x, self.y = map(torch.from_numpy, data(workload))

    def train(self, start: Weights, client: int, examples: int) -> None:
        x, y = self.x[client, :examples], self.y[client, :examples]
        self.model.load_state_dict(start)
        optimizer = torch.optim.SGD(self.model.parameters(), lr=self.workload.learning_rate)
        for row in range(0, len(x), BATCH):
            optimizer.zero_grad()
            loss_of(self.workload, self.model(x[row : row + BATCH]), y[row : row + BATCH]).backward()
            optimizer.step()

    def weighted_sum(self, start: Weights, clients: list[int], examples: int) -> Weights:
        """The clients' changes times their examples."""
        total = {name: torch.zeros_like(value) for name, value in start.items()}
        for client in clients:
            self.train(start, client, examples)
            for name, value in self.model.state_dict().items():
                total[name] += examples * (value - start[name])
        return total


def work(workload: Workload, threads: int, weights: torch.Tensor, total: torch.Tensor, pipe: Connection) -> None:
    """One of several processes: trains the clients it is told, from `weights`, and leaves their sum in `total`."""
    torch.set_num_threads(threads)
    mine, start = Clients(workload), unflat(workload, weights)
    while job := pipe.recv():
        torch.cat([value.reshape(-1) for value in mine.weighted_sum(start, *job).values()], out=total)
        pipe.send("done")


Round = Callable[[list[int], int], None]


def one_process(workload: Workload, weights: torch.Tensor) -> Round:
    mine = Clients(workload)

    def round_of(clients: list[int], examples: int) -> None:
        state = unflat(workload, weights)
        for name, value in mine.weighted_sum(state, clients, examples).items():
            state[name] += value / (len(clients) * examples)

    return round_of


def several_processes(workload: Workload, weights: torch.Tensor, processes: int, threads: int) -> Round:
    context = multiprocessing.get_context("spawn")
    weights.share_memory_()
    totals = [torch.zeros_like(weights).share_memory_() for _ in range(processes)]
    pipes = []
    for total in totals:
        here, there = context.Pipe()
        context.Process(target=work, args=(workload, threads, weights, total, there), daemon=True).start()
        pipes.append(here)

    def round_of(clients: list[int], examples: int) -> None:
        for index, pipe in enumerate(pipes):
            pipe.send((clients[index::processes], examples) if clients else None)
        if clients:
            for pipe in pipes:
                pipe.recv()
            weights.add_(sum(totals) / (len(clients) * examples))

    return round_of


def main() -> None:
    workload, arguments, answers = protocol.start()
    torch.set_num_threads(arguments.threads)
    first = torch.from_numpy(flat_of(model_of(workload)))
    weights = first.clone()
    if arguments.processes == 1:
        round_of = one_process(workload, weights)
    else:
        round_of = several_processes(workload, weights, arguments.processes, arguments.threads)
    generator = torch.Generator().manual_seed(0)

    def aggregate(examples: int) -> np.ndarray:
        weights.copy_(first)
        round_of(list(range(workload.cohort)), examples)
        return (weights - first).numpy()

    def one_round() -> int:
        round_of(
            torch.randperm(workload.population, generator=generator)[: workload.cohort].tolist(), workload.examples
        )
        return workload.cohort

    def run(seconds: float) -> tuple[int, float]:
        weights.copy_(first)
        return protocol.timed(one_round, seconds)

    ready = {
        "threads": arguments.threads,
        "processes": arguments.processes,
        "versions": {"torch": torch.__version__, "python": sys.version.split()[0]},
        "settings": "nn.Module, torch.optim.SGD, load_state_dict for every client, batches as slices of tensors",
    }
    protocol.serve(workload, answers, ready, aggregate, run)
    if arguments.processes > 1:
        round_of([], 0)


if __name__ == "__main__":
    main()
