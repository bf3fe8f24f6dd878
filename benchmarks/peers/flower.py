"""Flower: FedAvg over its simulation runtime (Ray), one CPU and one thread for every client.

Settings in its favour: one simulation serves all rounds, so its start is not counted; each actor keeps the data and
the model; there are no more nodes than a cohort has, because rounds get slower with every node that waits; no
evaluation and no client state.
"""

from __future__ import annotations

import os
import tempfile
import time

import numpy as np
import protocol


def main() -> None:
    workload, arguments, answers = protocol.start()
    home = tempfile.mkdtemp(prefix="flower-")
    os.environ.update(
        FLWR_TELEMETRY_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1", FLWR_HOME=home, RAY_USAGE_STATS_ENABLED="0",
        DO_NOT_TRACK="true", RAY_DEDUP_LOGS="0", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    )  # fmt: skip
    import logging

    import flower_client
    import flwr
    import ray
    import torch
    from flwr.app import ArrayRecord, ConfigRecord
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation
    from torch_models import flat_of, model_of

    logging.getLogger("flwr").setLevel("WARNING")
    server = ServerApp()
    model = model_of(workload)
    first = flat_of(model).copy()
    initial = ArrayRecord(model.state_dict())
    ready = {
        "threads": 1,
        "processes": arguments.processes,
        "versions": {"flwr": flwr.__version__, "ray": ray.__version__, "torch": torch.__version__},
        "settings": f"FedAvg, Ray backend, {arguments.processes} actors with one CPU each, {workload.cohort} nodes",
    }

    @server.main()
    def serve(grid, context) -> None:
        after = initial

        def rounds(count: int, examples: int = workload.examples) -> float:
            nonlocal after
            strategy = FedAvg(
                fraction_train=1.0,
                fraction_evaluate=0.0,
                min_train_nodes=workload.cohort,
                min_available_nodes=workload.cohort,
            )
            began = time.perf_counter()
            config = ConfigRecord({"workload": workload.name, "examples": examples})
            result = strategy.start(grid, initial, num_rounds=count, train_config=config)
            took = time.perf_counter() - began
            after = result.arrays
            return took

        def aggregate(examples: int) -> np.ndarray:
            rounds(1, examples)
            return np.concatenate([value.numpy().ravel() for value in after.to_torch_state_dict().values()]) - first

        run = protocol.planned(rounds, workload.cohort)
        protocol.serve(workload, answers, ready, aggregate, run)

    backend = {
        "init_args": {"num_cpus": arguments.processes, "object_store_memory": 512 * 2**20, "log_to_driver": False},
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
    }
    run_simulation(server, flower_client.app, workload.cohort, backend_config=backend)


if __name__ == "__main__":
    main()
