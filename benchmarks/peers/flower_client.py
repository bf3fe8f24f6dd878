"""The ClientApp of the peer `flower`; a module of its own, so that Ray's actors import it and keep what they loaded."""

from __future__ import annotations

import functools

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch_models import loss_of, model_of
from workloads import BATCH, WORKLOADS, Workload, data

app = ClientApp()


@functools.cache
def loaded(name: str) -> tuple[Workload, torch.nn.Module, torch.Tensor, torch.Tensor]:
    """Once in every actor: the clients' data in memory, and a model to load weights into."""
    torch.set_num_threads(1)
    workload = WORKLOADS[name]
    x, y = data(workload, workload.cohort)
    return workload, model_of(workload), torch.from_numpy(x), torch.from_numpy(y)


@app.train()
def train(message: Message, context: Context) -> Message:
    config, client = message.content["config"], context.node_config["partition-id"]
    workload, model, xs, ys = loaded(config["workload"])
    x, y = xs[client, : config["examples"]], ys[client, : config["examples"]]
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=workload.learning_rate)
    for row in range(0, len(x), BATCH):
        optimizer.zero_grad()
        loss_of(workload, model(x[row : row + BATCH]), y[row : row + BATCH]).backward()
        optimizer.step()
    answer = {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"num-examples": len(x)})}
    return Message(RecordDict(answer), reply_to=message)
