"""SCAFFOLD's control variates: what the server and the sites keep, and what they are for."""

from __future__ import annotations

import numpy as np
import plain_loop
import torch
from drawn_settings import SEED, Case, case_of, cases
from few_sites import kept, run, weights_of
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.federated.layout import Layout
from pipelines.federated.rules import Seats, Turn
from pipelines.federated.scaffold import SCAFFOLD
from pipelines.federated.strategies import fedavg, scaffold
from pipelines.federated.work import LocalWork


@settings(max_examples=8, deadline=None)
@given(cases(momentum=(0.0,)))
def test_both_kinds_of_control_variates_are_the_papers(case: Case) -> None:
    state = run(scaffold(case.work), case.sites, SEED)
    _, c, own = plain_loop.scaffold(case.plain(), case.start)
    assert np.abs(state.shared.double().numpy() - c).max() < 2e-5
    assert np.abs(kept(state, "control", case.sites.population.size).double().numpy() - np.stack(own)).max() < 2e-5


@settings(max_examples=8, deadline=None)
@given(cases())
def test_the_servers_variate_stays_the_mean_of_everybodys(case: Case) -> None:
    """Whoever takes part, and with momentum too: c = mean of all cᵢ, absent sites included."""
    state = run(scaffold(case.work), case.sites, SEED)
    assert torch.allclose(state.shared, kept(state, "control", case.sites.population.size).mean(dim=0), atol=1e-5)


@given(st.integers(0, 3))
def test_a_site_without_a_step_sends_zeros_and_keeps_its_variate(idle: int) -> None:
    layout = Layout(("w",), ((3,),))
    kept, server = torch.randn(4, 3), torch.randn(3)
    steps = np.full(4, 2)
    steps[idle] = 0
    deltas = torch.randn(4, 3) * torch.from_numpy(steps > 0)[:, None]
    seats = Seats(layout, np.arange(4, dtype=np.uint64), {"control": kept.clone()})
    still = torch.zeros(3)
    sent, _ = SCAFFOLD.local(Turn(lambda *_, **__: (deltas, torch.zeros(4)), still, server, seats, steps, LocalWork()))
    assert not sent[idle].any()
    assert torch.equal(seats.memory["control"][idle], kept[idle])
    assert sent.isfinite().all()


def test_it_reaches_the_common_optimum_from_which_fedavg_drifts() -> None:
    """Sites that disagree, full batches, many local steps: FedAvg's fixed point is not the pooled loss' optimum."""
    everybody = [list(range(4))] * 30
    work = LocalWork(epochs=10, batch_size=0, learning_rate=0.3, weight_decay=0.1)
    case = case_of([10, 10, 10, 10], everybody, work=work)
    pooled = case.plain().sites
    x, y = np.concatenate([site[0] for site in pooled]), np.concatenate([site[1] for site in pooled])
    left = []
    for strategy in (scaffold, fedavg):
        w = weights_of(run(strategy(work), case.sites, SEED))
        left.append(np.linalg.norm(plain_loop.gradient(w, x, y) + work.weight_decay * w))
    assert left[0] < 0.02 * left[1]
