"""Every kernel that can run a model does exactly the local work that the plain loop over torch.optim.SGD does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_cases import MODELS, Make, build, draw_steps, furthest, reference, works

from pipelines.federated.kernels import compiled, dense, sequential, stacked
from pipelines.federated.kernels.kernel import Kernel
from pipelines.federated.kernels.plain import plain
from pipelines.federated.work import LocalWork

KERNELS: dict[str, Make] = {
    "plain": plain,
    "plain-channels-last": lambda model, layout: plain(model, layout, channels_last=True),
    "sequential": sequential.sequential,
    "compiled": compiled.compiled,
    "dense": dense.dense,
    "stacked": stacked.stacked,
}
ABILITY = {"sequential": sequential.able, "compiled": compiled.able, "dense": dense.able}
ABLE = [
    (model, kernel)
    for model in MODELS
    for kernel in KERNELS
    if kernel not in ABILITY or ABILITY[kernel](build(model)[0])
]
_BUILT: dict[tuple[str, str], Kernel] = {}


def kernel_of(model: str, name: str) -> Kernel:
    """Kept between examples, as a run keeps it between rounds: a buffer that is not reset shows."""
    if (model, name) not in _BUILT:
        _BUILT[model, name] = KERNELS[name](*build(model))
    return _BUILT[model, name]


@pytest.mark.parametrize(("name", "kernel"), ABLE)
@given(
    seed=st.integers(0, 2**32),
    work=works,
    own_starts=st.booleans(),
    corrected=st.booleans(),
    anchored=st.booleans(),
    ragged=st.booleans(),
    bytes_=st.booleans(),
    sites=st.integers(1, 4),
)
@settings(max_examples=20, deadline=None)
def test_local_work_is_torch_sgds_in_double_precision(
    name: str,
    kernel: str,
    seed: int,
    work: LocalWork,
    own_starts: bool,
    corrected: bool,
    anchored: bool,
    ragged: bool,
    bytes_: bool,
    sites: int,
) -> None:
    model, layout = build(name)
    steps = draw_steps(name, seed, sites=sites, ragged=ragged, bytes_=bytes_)
    generator = torch.Generator().manual_seed(seed)
    start = layout.flatten(dict(model.named_parameters()))
    if own_starts:
        start = start + 0.1 * torch.randn(sites, layout.size, generator=generator)
    correction = 0.1 * torch.randn(sites, layout.size, generator=generator) if corrected else None
    anchor = 0.3 * torch.randn(layout.size, generator=generator) if anchored else None
    before = start.clone()
    deltas, losses = kernel_of(name, kernel)(start, steps, work, correction=correction, anchor=anchor)
    expected, expected_losses = reference(model, layout, start, steps, work, correction, anchor)
    assert deltas.shape == (sites, layout.size)
    assert furthest(deltas, expected) < 1e-5
    assert furthest(losses, expected_losses) < 1e-5
    assert torch.equal(start, before)


@pytest.mark.parametrize(("name", "kernel"), ABLE)
def test_the_same_chunk_gives_the_same_bits_and_another_chunking_nearly(name: str, kernel: str) -> None:
    model, layout = build(name)
    run = kernel_of(name, kernel)
    start = layout.flatten(dict(model.named_parameters()))
    steps, work = draw_steps(name, 3, sites=5), LocalWork(momentum=0.5, clip_norm=0.5)
    once = [part.clone() for part in run(start, steps, work)]
    again = run(start, steps, work, measure_loss=False)
    assert torch.equal(once[0], again[0])
    assert not again[1].any()
    for site in range(5):
        alone = replace(
            steps,
            index=steps.index[site : site + 1],
            weight=steps.weight[site : site + 1],
            steps=steps.steps[site : site + 1],
            examples=steps.examples[site : site + 1],
        )
        delta, loss = run(start, alone, work)
        assert furthest(delta[0], once[0][site]) < 1e-6
        assert furthest(loss[0], once[1][site]) < 1e-6


@pytest.mark.parametrize(("name", "kernel"), ABLE)
def test_the_callers_model_is_left_alone(name: str, kernel: str) -> None:
    model, layout = build(name)
    before = layout.flatten(dict(model.named_parameters()))
    KERNELS[kernel](model, layout)(before, draw_steps(name, 0), LocalWork())
    assert torch.equal(layout.flatten(dict(model.named_parameters())), before)


@pytest.mark.parametrize("name", ["dense", "wide", "convolutional"])
@pytest.mark.parametrize("large", [1, 10**9])
@given(seed=st.integers(0, 2**32), own_starts=st.booleans(), ragged=st.booleans(), count=st.integers(1, 21))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_weights_that_move_late_or_in_blocks_end_where_torch_sgd_ends(
    monkeypatch: pytest.MonkeyPatch, name: str, large: int, seed: int, own_starts: bool, ragged: bool, count: int
) -> None:
    monkeypatch.setattr(sequential, "LARGE", large)
    model, layout = build(name)
    steps, work = draw_steps(name, seed, ragged=ragged, count=count), LocalWork(learning_rate=0.1)
    start = layout.flatten(dict(model.named_parameters()))
    if own_starts:
        start = start + 0.1 * torch.randn(len(steps), layout.size, generator=torch.Generator().manual_seed(seed))
    deltas, losses = kernel_of(name, "sequential")(start, steps, work)
    expected, expected_losses = reference(model, layout, start, steps, work)
    assert furthest(deltas, expected) < 2e-5
    assert furthest(losses, expected_losses) < 1e-5


@pytest.mark.parametrize("name", [name for name in MODELS if sequential.able(build(name)[0])])
@pytest.mark.parametrize("large", [1, 10**9])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_in_bfloat16_an_update_points_the_same_way(
    monkeypatch: pytest.MonkeyPatch, name: str, large: int, momentum: float
) -> None:
    monkeypatch.setattr(sequential, "LARGE", large)
    model, layout = build(name)
    steps, work = draw_steps(name, 2, sites=4), LocalWork(learning_rate=0.1, momentum=momentum)
    start = layout.flatten(dict(model.named_parameters()))
    exact = plain(model, layout)(start, steps, work)[0]
    for kernel in (plain, sequential.sequential):
        deltas, _ = kernel(model, layout, dtype=torch.bfloat16)(start, steps, work)
        assert torch.cosine_similarity(deltas.flatten(), exact.flatten(), dim=0) > 0.98
