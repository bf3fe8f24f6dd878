"""Personal models: Ditto against its paper's loop, and what comparing them site by site says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import plain_loop
import pytest
import torch
from drawn_settings import SEED, Case, case_of, cases
from few_sites import FewSites, kept, make_model, make_population, run, weights_of
from hypothesis import given, settings
from torch.nn.functional import cross_entropy

from models.draws import seeds_of
from models.population import Partition
from pipelines.federated.kernels.plain import plain
from pipelines.federated.layout import Layout
from pipelines.federated.personal import Personalisation, SiteScores, compare, fine_tune, personal_models, site_scores
from pipelines.federated.steps import steps_of
from pipelines.federated.strategies import ditto, fedavg
from pipelines.federated.work import LocalWork

WORK = LocalWork(epochs=5, batch_size=4, learning_rate=0.1)


def with_held_out(population: Partition, test: Partition) -> Partition:
    return replace(population, test=test)


def flat(model: torch.nn.Module) -> torch.Tensor:
    return Layout.of_model(model).flatten(dict(model.named_parameters()))


@settings(max_examples=8, deadline=None)
@given(cases())
def test_dittos_personal_models_are_the_papers(case: Case) -> None:
    state = run(ditto(case.work, pull=0.3), case.sites, SEED)
    _, personal = plain_loop.ditto(case.plain(), case.start, 0.3)
    for site in range(case.sites.population.size):
        found = kept(state, "personal", case.sites.population.size)[site].double().numpy()
        assert np.abs(found - personal.get(site, np.zeros_like(found))).max() < 2e-6


def test_what_is_sent_is_fedavgs_to_the_bit() -> None:
    case = case_of([5, 9, 3], [[0, 1], [1, 2], [0, 2]])
    assert np.array_equal(*(weights_of(run(build(case.work), case.sites, SEED)) for build in (ditto, fedavg)))


def test_a_site_that_never_took_part_has_the_shared_model() -> None:
    memory, weights = torch.tensor([[0.0, 0.0], [0.5, 0.0]]), torch.tensor([1.0, 2.0])
    assert torch.equal(personal_models(memory, weights), torch.tensor([[1.0, 2.0], [0.5, 0.0]]))


def test_a_strong_pull_keeps_personal_models_at_the_shared_one_and_none_lets_them_go() -> None:
    case = case_of([8, 12], [[0, 1]], work=WORK)
    apart = []
    for pull in (0.0, 5.0):
        state = run(ditto(case.work, pull), case.sites, SEED)
        apart.append(float((kept(state, "personal", 2).double() - torch.from_numpy(case.start)).norm()))
    assert apart[1] < 0.5 * apart[0]


def test_fine_tuning_ends_where_local_training_ends() -> None:
    population, model = make_population([6, 9]), make_model()
    sites = np.arange(2)
    kernel, start = plain(model, Layout.of_model(model)), flat(model)
    steps = steps_of(population.rows(sites), WORK, seeds_of(1, sites))
    tuned = fine_tune(kernel, start, steps, WORK)
    assert torch.equal(tuned, start + kernel(start, steps, WORK)[0])
    again = fine_tune(kernel, tuned, steps, WORK)
    assert torch.equal(again[1], tuned[1] + kernel(tuned, steps, WORK)[0][1])


def test_scores_are_each_sites_own() -> None:
    population, model = make_population([6, 9, 4]), make_model()
    weights = flat(model) + torch.linspace(-1, 1, 3)[:, None] * torch.linspace(0, 1, len(flat(model)))
    scores = site_scores(model, Layout.of_model(model), weights, population.rows(np.arange(3)))
    for site in range(3):
        x, y = population.rows(np.arange(3)).client(site)
        own = make_model()
        own.load_state_dict(Layout.of_model(own).unflatten(weights[site]))
        assert scores.correct[site] == int((own(x).argmax(1) == y).sum())
        assert scores.log_loss[site] == pytest.approx(cross_entropy(own(x), y).item(), rel=1e-5)
    assert scores.rows.tolist() == [6, 9, 4]


def test_a_comparison_does_not_depend_on_how_many_sites_are_tuned_at_once() -> None:
    population = with_held_out(make_population([8, 3, 12, 5, 8], 1), make_population([6, 2, 9, 4, 6], 1))
    model, clients = make_model(), np.array([4, 0, 2, 3])
    kernel = plain(model, Layout.of_model(model))
    whole = compare(kernel, model, population, clients, flat(model), WORK, 3, untrained=flat(model))
    kernel.chunk = 1
    single = compare(kernel, model, population, clients, flat(model), WORK, 3, untrained=flat(model))
    for kind in ("global", "fine_tuned", "local"):
        assert np.array_equal(whole.scores[kind].correct, single.scores[kind].correct)
        assert np.allclose(whole.scores[kind].log_loss, single.scores[kind].log_loss, atol=1e-6)
    assert whole.clients.tolist() == clients.tolist()


def test_personal_models_help_where_sites_disagree() -> None:
    """Every other site sees its rows with the opposite sign; half of a site's rows are held out."""
    sign = torch.tensor([1.0, -1.0]).repeat(3).repeat_interleave(60)[:, None]
    population = make_population([60] * 6, 2)
    population = replace(population, x=population.x * sign)
    halves = [replace(population, starts=population.starts + at, sizes=population.sizes // 2) for at in (0, 30)]
    split = with_held_out(*halves)
    model = make_model()
    state = run(ditto(WORK), FewSites(split, [list(range(6))] * 5, model), SEED)
    weights = Layout.of(state.parameters).flatten(state.parameters)
    found = compare(
        plain(model, Layout.of_model(model)), model, split, np.arange(6), weights, WORK, 1,
        untrained=flat(model), personal=kept(state, "personal", 6),
    )  # fmt: skip
    summary = found.summary()
    assert summary["global"]["improved"] == summary["global"]["worsened"] == 0
    for kind in ("fine_tuned", "ditto"):
        assert summary[kind]["accuracy"] > summary["global"]["accuracy"]
        assert summary[kind]["improved"] > summary[kind]["worsened"]


def test_sites_without_rows_held_out_are_left_out() -> None:
    population = with_held_out(
        make_population([4, 4, 4]), replace(make_population([3, 3, 3]), sizes=np.array([3, 0, 3]))
    )
    model = make_model()
    kernel = plain(model, Layout.of_model(model))
    assert compare(kernel, model, population, np.arange(3), flat(model), WORK, 0).clients.tolist() == [0, 2]
    with pytest.raises(ValueError, match="held out"):
        compare(kernel, model, population, np.array([1]), flat(model), WORK, 0)


def test_the_summary_counts_sites_not_rows() -> None:
    usual = SiteScores(np.array([100, 2]), np.array([100, 0]), np.array([0.1, 2.0]))
    own = SiteScores(np.array([100, 2]), np.array([90, 2]), np.array([0.2, 0.1]))
    summary = Personalisation(np.arange(2), {"global": usual, "fine_tuned": own}).summary()
    assert summary["global"] == {
        "accuracy": 0.5, "log_loss": 1.05, "worst_decile": 0.0, "improved": 0.0, "worsened": 0.0
    }  # fmt: skip
    assert summary["fine_tuned"]["accuracy"] == pytest.approx(0.95)
    assert summary["fine_tuned"]["improved"] == summary["fine_tuned"]["worsened"] == 0.5
    assert summary["fine_tuned"]["worst_decile"] == pytest.approx(0.9)
