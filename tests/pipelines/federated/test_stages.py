"""Every stage keeps an update's names, shapes and types; clipping bounds its length and nothing else."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.federated.jobs import Parameters
from pipelines.federated.stages import ClipByNorm, Stage, on_server, on_site

STAGES = {"clip": ClipByNorm(0.7)}


def update(seed: int, scale: float) -> Parameters:
    generator = torch.Generator().manual_seed(seed)
    return {"a": torch.randn(3, 2, generator=generator) * scale, "b": torch.randn((), generator=generator) * scale}


def norm(values: Parameters) -> float:
    return float(torch.cat([tensor.double().flatten() for tensor in values.values()]).norm())


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
@given(seed=st.integers(0, 2**32), scale=st.floats(0, 1e6))
@settings(max_examples=25, deadline=None)
def test_a_stage_keeps_names_shapes_and_types_and_its_input(stage: Stage, seed: int, scale: float) -> None:
    given_update = update(seed, scale)
    before = {name: tensor.clone() for name, tensor in given_update.items()}
    passed = stage.on_server(stage.on_site(given_update))
    assert {n: (t.shape, t.dtype) for n, t in passed.items()} == {n: (t.shape, t.dtype) for n, t in before.items()}
    assert all(torch.equal(given_update[name], before[name]) for name in before)
    assert all(bool(tensor.isfinite().all()) for tensor in passed.values())
    assert stage.name


@given(seed=st.integers(0, 2**32), scale=st.floats(0, 1e6), bound=st.floats(1e-3, 1e3))
@settings(max_examples=50, deadline=None)
def test_clipping_bounds_the_length_and_keeps_the_direction(seed: int, scale: float, bound: float) -> None:
    given_update = update(seed, scale)
    clipped = ClipByNorm(bound).on_site(given_update)
    assert norm(clipped) <= bound * (1 + 1e-6)
    if norm(given_update) <= bound:
        assert all(torch.equal(clipped[name], given_update[name]) for name in clipped)
    else:
        assert norm(clipped) == pytest.approx(bound, rel=1e-5)
        factor = norm(clipped) / norm(given_update)
        assert all(torch.allclose(clipped[n], given_update[n] * factor, rtol=1e-4, atol=1e-9) for n in clipped)


def test_an_update_of_nothing_stays_nothing() -> None:
    clipped = ClipByNorm(1.0).on_site({"a": torch.zeros(3)})
    assert torch.equal(clipped["a"], torch.zeros(3))


def test_the_server_undoes_stages_in_reverse_order() -> None:
    add = Stage("add", lambda u: {n: t + 1 for n, t in u.items()}, lambda u: {n: t - 1 for n, t in u.items()})
    double = Stage("double", lambda u: {n: t * 2 for n, t in u.items()}, lambda u: {n: t / 2 for n, t in u.items()})
    given_update = {"a": torch.tensor([3.0])}
    sent = on_site((add, double), given_update)
    assert sent["a"].item() == 8.0
    assert on_server((add, double), sent)["a"].item() == 3.0
