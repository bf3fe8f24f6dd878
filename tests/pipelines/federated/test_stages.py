"""Every stage keeps the shapes and types of a stack; clipping bounds each site's length and nothing else."""

from __future__ import annotations

import pickle
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.draws import seeds_of
from pipelines.federated.layout import Layout
from pipelines.federated.rules import Seats
from pipelines.federated.stages import ClipByNorm, Stage, on_server, on_site, sent_bytes

LAYOUT = Layout(("a", "b"), ((3, 2), ()))
STAGES: dict[str, Stage] = {"clip": ClipByNorm(0.7)}

battery = pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
sites, seeds, scales = st.integers(1, 5), st.integers(0, 2**32), st.floats(0, 1e6)


def updates(count: int, seed: int, scale: float) -> torch.Tensor:
    """A stack of sites whose updates differ in length."""
    generator = torch.Generator().manual_seed(seed)
    own = torch.rand(count, 1, generator=generator) * scale
    return torch.randn(count, LAYOUT.size, generator=generator) * own


def seats(count: int) -> Seats:
    return Seats(LAYOUT, seeds_of(0, np.arange(count)))


def norms(stack: torch.Tensor) -> list[float]:
    return [float(update.double().norm()) for update in stack]


@battery
@given(count=sites, seed=seeds, scale=scales)
@settings(max_examples=25, deadline=None)
def test_a_stage_keeps_shapes_and_types_and_its_input(stage: Stage, count: int, seed: int, scale: float) -> None:
    given_updates = updates(count, seed, scale)
    before = given_updates.clone()
    passed = stage.on_site(given_updates, seats(count))
    assert (passed.shape, passed.dtype) == (before.shape, before.dtype)
    assert torch.equal(given_updates, before)
    assert bool(passed.isfinite().all())
    reduced = passed.mean(0)
    kept = reduced.clone()
    back = stage.on_server(reduced)
    assert (back.shape, back.dtype) == (reduced.shape, reduced.dtype)
    assert torch.equal(reduced, kept)


@battery
@given(count=sites, seed=seeds, scale=scales)
@settings(max_examples=25, deadline=None)
def test_a_site_in_a_stack_is_treated_as_it_is_alone(stage: Stage, count: int, seed: int, scale: float) -> None:
    stack = updates(count, seed, scale)
    together = stage.on_site(stack, seats(count))
    for site in range(count):
        own = Seats(LAYOUT, seats(count).seeds[site : site + 1])
        assert torch.allclose(stage.on_site(stack[site : site + 1], own)[0], together[site], rtol=1e-6, atol=0)


@battery
def test_a_stage_is_a_value_that_travels(stage: Stage) -> None:
    assert stage.name
    assert pickle.loads(pickle.dumps(stage)) == stage  # noqa: S301 (our own bytes)


@given(count=sites, seed=seeds, scale=scales, bound=st.floats(1e-3, 1e3))
@settings(max_examples=50, deadline=None)
def test_clipping_bounds_the_length_and_keeps_the_direction(count: int, seed: int, scale: float, bound: float) -> None:
    stack = updates(count, seed, scale)
    clipped = ClipByNorm(bound).on_site(stack, seats(count))
    for update, own, length, own_length in zip(stack, clipped, norms(stack), norms(clipped), strict=True):
        assert own_length <= bound * (1 + 1e-6)
        if length <= bound:
            assert torch.equal(own, update)
        else:
            assert own_length == pytest.approx(bound, rel=1e-5)
            assert torch.allclose(own, update * (own_length / length), rtol=1e-4, atol=1e-9)


def test_an_update_of_nothing_stays_nothing() -> None:
    assert torch.equal(ClipByNorm(1.0).on_site(torch.zeros(2, 7), seats(2)), torch.zeros(2, 7))


def test_clipping_changes_no_size_on_the_wire() -> None:
    assert not ClipByNorm(1.0).encodes
    assert sent_bytes((ClipByNorm(1.0),), LAYOUT) == sent_bytes((), LAYOUT) == 28.0


@dataclass(frozen=True)
class Add(Stage):
    """Add one on the site, take it away on the server."""

    name: str = "add"

    def on_site(self, updates: torch.Tensor, seats: Seats) -> torch.Tensor:
        return updates + 1

    def on_server(self, update: torch.Tensor) -> torch.Tensor:
        return update - 1


@dataclass(frozen=True)
class Double(Add):
    """Double on the site, halve on the server."""

    name: str = "double"

    def on_site(self, updates: torch.Tensor, seats: Seats) -> torch.Tensor:
        return updates * 2

    def on_server(self, update: torch.Tensor) -> torch.Tensor:
        return update / 2


def test_the_server_undoes_stages_in_reverse_order() -> None:
    sent = on_site((Add(), Double()), torch.tensor([[3.0], [4.0]]), seats(2))
    assert sent.flatten().tolist() == [8.0, 10.0]
    assert on_server((Add(), Double()), sent.mean(0)).item() == 3.5
