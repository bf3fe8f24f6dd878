"""fedloop itself, by the way every simulation takes: a measured kernel and arrangement, then rounds of the engine.

Kernel, processes and threads are chosen when the process starts, as `fedloop simulate` does at a task's first call,
and the loss is measured as often as it would be in a run of 1,000 rounds. Each client's rows are taken in an order of
its own, which `aggregate` reports.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import protocol

workload, arguments, answers = protocol.start()
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch_models import model_of  # noqa: E402
from workloads import BATCH, data, flat  # noqa: E402

from models.draws import draw_seed, permutations, seeds_of  # noqa: E402
from models.population import Partition, partition  # noqa: E402
from pipelines.federated.engines.fleet import FleetEngine  # noqa: E402
from pipelines.federated.engines.tuning import arrange  # noqa: E402
from pipelines.federated.engines.turnout import Always  # noqa: E402
from pipelines.federated.kernels.choose import choose  # noqa: E402
from pipelines.federated.layout import Layout  # noqa: E402
from pipelines.federated.plan import TrainingPlan, TrainingState  # noqa: E402
from pipelines.federated.steps import steps_of  # noqa: E402
from pipelines.federated.strategies import fedavg  # noqa: E402
from pipelines.federated.training import begin, run_round  # noqa: E402
from pipelines.federated.work import LocalWork  # noqa: E402

ROUNDS = 1_000
# With seed 0, the 2NN's first two batches bring a unit to 1e-8 of ReLU's kink: float32 cannot be held to digits there.
SEED = 1


def dealt(x: np.ndarray, y: np.ndarray) -> Partition:
    clients, examples = y.shape
    return partition(
        x.reshape(-1, *workload.input), y.reshape(-1).astype(np.int64), np.repeat(np.arange(clients), examples)
    )


def main() -> None:
    model = model_of(workload)
    initial = {name: value.detach().clone() for name, value in model.named_parameters()}
    x, y = data(workload)
    population, cohort = dealt(x, y), (x[: workload.cohort], y[: workload.cohort])
    work = LocalWork(epochs=1, batch_size=BATCH, learning_rate=workload.learning_rate)
    plan = TrainingPlan((), {}, ROUNDS, SEED, fedavg(work))
    drawn = Always(population.size, workload.cohort)

    dtype = torch.bfloat16 if arguments.bfloat16 else torch.float32
    with tempfile.TemporaryDirectory() as home:
        some = np.arange(min(workload.cohort, 64), dtype=np.int64)
        steps = steps_of(population.rows(some), work, seeds_of(draw_seed("choose"), some))
        kernel = choose(model, Layout.of_model(model), steps, work, Path(home) / "kernels.json", dtype=dtype)

        def engine(processes: int, threads: int, on: Partition = population, turnout: Always = drawn) -> FleetEngine:
            return FleetEngine(model, on, turnout, plan.strategy, kernel, processes, threads, ROUNDS // 100)

        processes, threads = arrange(workload.name, engine, plan, initial, Path(home) / "arrangements.json")

    def change(state: TrainingState) -> np.ndarray:
        names = [parameter.name for parameter in workload.parameters]
        return flat({name: (state.parameters[name] - initial[name]).numpy() for name in names})

    def aggregate(examples: int) -> tuple[np.ndarray, np.ndarray]:
        """By an engine whose whole population is the cohort."""
        clients = np.arange(workload.cohort)
        mine = dealt(cohort[0][:, :examples], cohort[1][:, :examples])
        with engine(processes, threads, mine, Always(workload.cohort, workload.cohort)) as running:
            after = run_round(plan, begin(plan, initial), running)
        orders = permutations(seeds_of(draw_seed(plan.seed, 1), clients), mine.counts(clients))
        return change(after), orders

    ready = {
        "threads": threads,
        "processes": processes,
        "versions": {"torch": torch.__version__},
        "settings": f"kernel {kernel}, measured; the loss every {ROUNDS // 100} rounds",
    }
    with engine(processes, threads) as running:
        state = begin(plan, initial)

        def one_round() -> int:
            nonlocal state
            state = run_round(plan, state, running)
            return state.log[-1].reports

        def run(seconds: float) -> tuple[int, float]:
            nonlocal state
            state = begin(plan, initial)
            return protocol.timed(one_round, seconds)

        protocol.serve(workload, answers, ready, aggregate, run)


if __name__ == "__main__":
    main()
