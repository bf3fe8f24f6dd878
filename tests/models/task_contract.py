"""What every image task promises, as one check that the tasks' own tests run."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from models.images import content_hash, to_tensor
from models.task import Task, TaskData

MOST_PARAMETERS = 60_000


def check_model(task: Task) -> None:
    """Small, without state across examples, and one image's answer does not depend on its neighbours."""
    torch.manual_seed(0)
    model = task.build_model()
    assert sum(p.numel() for p in model.parameters()) <= MOST_PARAMETERS
    assert list(model.buffers()) == []
    shape = (5, task.input.channels, task.input.height, task.input.width)
    images = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    together = model(images)
    assert together.shape == (5, len(task.classes))
    assert torch.isfinite(together).all()
    for index in range(5):
        torch.testing.assert_close(model(images[index : index + 1])[0], together[index], atol=1e-5, rtol=1e-4)
    assert task.features(model, images).flatten(1).shape[0] == 5


def check_augmentation(task: Task) -> None:
    """The same generator gives the same pictures, of the same shape and range; another one gives others."""
    assert task.augment is not None
    shape = (16, task.input.channels, task.input.height, task.input.width)
    images = torch.rand(shape, generator=torch.Generator().manual_seed(2))
    once, again, other = (task.augment(images, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert once.shape == images.shape
    assert float(once.min()) >= 0.0
    assert float(once.max()) <= 1.0
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


def check_pools(task: Task, data: TaskData) -> None:
    """No image is in two pools or in one twice, every image fits the task, every pool has every class."""
    keys = []
    for rows in (data.development, data.evaluation, data.live, data.probe):
        assert set(rows.labels) == set(range(len(task.classes)))
        for image in rows.images:
            assert isinstance(image, np.ndarray)
            assert (image.dtype, image.shape) == (np.uint8, task.input.shape)
            keys.append(content_hash(image.tobytes()))
    assert len(set(keys)) == len(keys)


def data_of(task: Task) -> TaskData:
    """The task's data, or a skip: the suite downloads nothing."""
    if not os.environ.get("FEDLOOP_DATA"):
        pytest.skip(f"the data of {task.name} are not here; name the folder that holds them in FEDLOOP_DATA")
    return task.load()


def auc_after_central_training(task: Task, data: TaskData, epochs: int, learning_rate: float) -> float:
    """AUC on the probe after plain SGD over the development rows, with the task's own model and augmentation."""
    from sklearn.metrics import roc_auc_score
    from torch.func import functional_call

    from pipelines.federated.kernels.plain import plain
    from pipelines.federated.layout import Layout
    from pipelines.federated.local_work import LabelledRows, site_steps
    from pipelines.federated.work import LocalWork

    images = np.stack([np.asarray(image) for image in data.development.images])
    labels = torch.tensor(data.development.labels)
    work = LocalWork(epochs=epochs, batch_size=16, learning_rate=learning_rate, momentum=0.9)
    torch.manual_seed(0)
    model = task.build_model()
    layout = Layout.of_model(model)
    start = layout.flatten(dict(model.named_parameters()))
    rows = LabelledRows(images, labels, torch.ones(len(labels)))
    deltas, _ = plain(model, layout)(start, site_steps(rows, work, 0, task.augment), work)
    weights = layout.unflatten(start + deltas[0])
    probe = to_tensor(np.stack([np.asarray(image) for image in data.probe.images]))
    with torch.no_grad():
        positive = torch.softmax(functional_call(model, weights, (probe,)), dim=1)[:, 1]
    return float(roc_auc_score(data.probe.labels, positive.numpy()))
