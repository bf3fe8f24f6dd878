"""The chooser measures once, remembers, and never takes a kernel that computes something else."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path

import pytest
import torch
from kernel_cases import MODELS, build, draw_steps
from torch import nn

from models.errors import BadInput
from pipelines.federated.kernels import choose as chooser
from pipelines.federated.kernels.choose import candidates, choose, kernel_named, measure
from pipelines.federated.kernels.plain import Plain
from pipelines.federated.layout import Layout
from pipelines.federated.steps import Steps
from pipelines.federated.work import LocalWork

WORK = LocalWork(batch_size=4)


@pytest.fixture(autouse=True)
def _brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chooser, "SECONDS", 0.02)


def setting(name: str) -> tuple[nn.Module, Layout, Steps]:
    model, layout = build(name)
    return model, layout, draw_steps(name, 1, sites=5)


@pytest.mark.parametrize("name", MODELS)
def test_the_kernel_that_is_named_is_the_kernel_that_one_gets(name: str) -> None:
    model, layout, steps = setting(name)
    for dtype in (torch.float32, torch.bfloat16):
        able = candidates(model, layout, dtype)
        assert choose(model, layout, steps, WORK, dtype=dtype) in able
        for each in able:
            assert kernel_named(each, model, layout).name == each


def test_what_was_measured_is_remembered_for_the_same_circumstances_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, layout, steps = setting("dense")
    memory = tmp_path / "kernels.json"
    first = choose(model, layout, steps, WORK, memory)
    asked = []
    monkeypatch.setattr(chooser, "measure", lambda *_: asked.append(1) or {"plain": 1.0})
    assert choose(model, layout, steps, LocalWork(batch_size=4, learning_rate=0.7), memory) == first
    assert not asked
    assert choose(model, layout, steps, LocalWork(batch_size=4, momentum=0.7), memory) == "plain"
    assert choose(model, layout, draw_steps("dense", 1, batch=7), WORK, memory) == "plain"
    assert len(asked) == 2
    assert len(json.loads(memory.read_text())) == 3


@pytest.mark.parametrize("torn", [b"", b'{"a": {"ker', b"[1, 2]", b"\xff\xfe"])
def test_a_torn_memory_is_measured_and_written_anew(tmp_path: Path, torn: bytes) -> None:
    model, layout, steps = setting("dense")
    memory = tmp_path / "kernels.json"
    memory.write_bytes(torn)
    name = choose(model, layout, steps, WORK, memory)
    assert [entry["kernel"] for entry in json.loads(memory.read_text()).values()] == [name]


def test_a_remembered_kernel_that_is_no_more_is_measured_again(tmp_path: Path) -> None:
    model, layout, steps = setting("dense")
    memory = tmp_path / "kernels.json"
    choose(model, layout, steps, WORK, memory)
    known = json.loads(memory.read_text())
    memory.write_text(json.dumps({key: {"kernel": "long gone"} for key in known}))
    assert choose(model, layout, steps, WORK, memory) in candidates(model, layout)


class Hasty(Plain):
    """Fast, for it does half of the work."""

    def __call__(self, start, steps, work, **rest):  # type: ignore[no-untyped-def]  # noqa: ANN
        deltas, losses = super().__call__(start, steps, work, **rest)
        return deltas.mul_(0.5), losses


def test_a_kernel_with_other_updates_is_discarded_with_a_word(caplog: pytest.LogCaptureFixture) -> None:
    model, layout, steps = setting("dense")
    able = {"hasty": partial(Hasty, model, layout), "plain": candidates(model, layout)["plain"]}
    with caplog.at_level(logging.WARNING):
        assert list(measure(model, layout, able, steps, WORK)) == ["plain"]
    assert "hasty" in caplog.text


def test_an_unknown_kernel_is_the_users_mistake_and_names_the_known_ones() -> None:
    model, layout, _ = setting("normalised")
    with pytest.raises(BadInput, match="plain-channels-last"):
        kernel_named("sequential", model, layout)
    with pytest.raises(BadInput, match="learning rate"):
        choose(model, layout, draw_steps("normalised", 1), LocalWork(learning_rate=float("inf")))
