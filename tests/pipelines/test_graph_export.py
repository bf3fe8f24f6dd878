"""The champion as an ONNX graph: the same answers, or none; int8 at a measured cost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from models import artifact
from models.errors import BadInput, Missing
from models.images import to_tensor
from pipelines import export, registry, release
from pipelines.registry import Version
from pipelines.settings import Settings


def test_the_graph_answers_as_the_champion_and_int8_costs_what_is_said(
    settings: Settings, register: Callable[..., Version], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Missing, match="is champion yet"):
        export.export_champion(settings, tmp_path, False)
    release.promote(settings, register(3).number, "test")
    done = export.export_champion(settings, tmp_path, int8=True)
    assert done.difference <= export.TOLERANCE
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
    module = artifact.load(registry.fetch(settings, 1), settings.task)
    original = module(to_tensor(images)).softmax(dim=1).detach().numpy()
    assert np.allclose(export._answers(tmp_path / export.GRAPH, images), original, atol=1e-5)
    rough = export._answers(tmp_path / export.INT8, images)
    assert rough.shape == original.shape and np.abs(rough - original).max() < 0.2
    assert done.int8_accuracy is not None and abs(done.int8_accuracy - done.accuracy) < 0.2
    about = json.loads((tmp_path / export.ABOUT).read_text())
    assert (about["version"], about["classes"], about["int8_accuracy"]) == (1, list("0123456789"), done.int8_accuracy)
    monkeypatch.setattr(export, "TOLERANCE", -1.0)  # no graph is as close as that
    with pytest.raises(BadInput, match="not kept"):
        export.export_champion(settings, tmp_path, False)
    assert not (tmp_path / export.GRAPH).exists()
