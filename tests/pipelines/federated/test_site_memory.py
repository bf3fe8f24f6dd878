"""What a site keeps between the rounds of a run: a round that is done again starts with what it had before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_runs import RULES, SIZES, TRAIL, WORK, equal, plan_over, sites_in
from tiny_sites import LABELLING, initial, make_site

from models.errors import Missing
from pipelines.federated.checkpoints import KEPT
from pipelines.federated.cohort import Cohort
from pipelines.federated.engines.asking import collect_by_asking
from pipelines.federated.engines.local import LocalEngine
from pipelines.federated.jobs import Answer, Failure, Job, TrainAnswer, TrainJob
from pipelines.federated.layout import Layout
from pipelines.federated.plan import Context, Gathered, TrainingPlan, TrainingState
from pipelines.federated.rules import LocalRule
from pipelines.federated.scaffold import SCAFFOLD
from pipelines.federated.store import MEMORIES_KEPT, SiteStore
from pipelines.federated.strategy import Strategy
from pipelines.federated.training import train
from pipelines.federated.work import LocalWork

LAYOUT = Layout.of(initial())
REMEMBERING = [rule for rule in RULES.values() if rule.memory]
each_rule = pytest.mark.parametrize("rule", REMEMBERING, ids=lambda rule: rule.name)


# -- the store --------------------------------------------------------------------------------------------------


def number(value: int) -> dict[str, torch.Tensor]:
    return {"v": torch.full((1, 2), float(value))}


def test_a_site_recalls_what_it_kept_last_before_a_round(tmp_path: Path) -> None:
    store = SiteStore(tmp_path / "site")
    assert store.recall("run", 5) == {}
    for done in (1, 2, 4):
        store.remember("run", done, number(done))
    recalled = {before: store.recall("run", before) for before in range(1, 7)}
    assert [kept["v"][0, 0].item() if kept else None for kept in recalled.values()] == [None, 1, 2, 2, 4, 4]
    assert store.recall("run", 5, (4,))["v"][0, 0].item() == 2
    assert store.recall("run", 5, (1, 2, 4)) == {}
    assert store.recall("another", 5) == {}


def test_what_a_rule_keeps_may_be_one_tensor_under_two_names_or_a_part_of_a_larger_one(tmp_path: Path) -> None:
    store, stack = SiteStore(tmp_path / "site"), torch.arange(12.0).view(3, 4)
    store.remember("run", 1, {"last": stack[1:2], "best": stack[1:2], "slow": stack.T[:1]})
    recalled = store.recall("run", 2)
    assert {name: tensor.tolist() for name, tensor in recalled.items()} == {
        "last": [[4, 5, 6, 7]],
        "best": [[4, 5, 6, 7]],
        "slow": [[0, 4, 8]],
    }


forth, back = st.tuples(st.just("forth"), st.integers(1, 16)), st.tuples(st.just("back"), st.integers(1, 20))


@given(moves=st.lists(st.one_of(forth, back), max_size=8), data=st.data())
@settings(max_examples=100, deadline=None)
def test_a_site_recalls_what_the_servers_history_says_or_says_that_it_is_gone(
    tmp_path_factory: pytest.TempPathFactory, moves: list[tuple[str, int]], data: st.DataObject
) -> None:
    """A server that goes back forgets what came after; in some rounds the site has no part, some are abandoned."""
    store = SiteStore(tmp_path_factory.mktemp("site"))
    absent, lost = (data.draw(st.sets(st.integers(1, 40), max_size=6)) for _ in range(2))
    history: list[tuple[int | None, bool]] = []  # by round: what the site kept, whether it was abandoned
    furthest, done = 0, 0
    for move, rounds in moves:
        if move == "back":
            history = history[: max(0, len(history) - rounds)]
            furthest = furthest if history else 0
            continue
        for now in range(len(history) + 1, len(history) + 1 + rounds):
            abandoned = [i for i, (_, without) in enumerate(history, 1) if without]
            lasting = [value for value, without in history if value is not None and not without]
            done += 1
            if now in absent:
                history.append((None, False))
                continue
            try:
                recalled = store.recall("run", now, abandoned)
                assert [kept[0, 0].item() for kept in recalled.values()] == lasting[-1:]
            except Missing:
                assert lasting
                assert furthest - len(history) >= MEMORIES_KEPT, "it was not that long ago"
                return
            store.remember("run", now, number(done), abandoned)
            furthest = max(furthest, now)
            history.append((done, done in lost))
    assert len(list((store.root / "memory").rglob("*.safetensors"))) <= MEMORIES_KEPT + len(lost) + 1


# -- a site -----------------------------------------------------------------------------------------------------


def job(train_ids: tuple[str, ...], round_number: int, work: LocalWork = WORK) -> TrainJob:
    shared = SCAFFOLD.shared(LAYOUT.size)
    return TrainJob(round_number, 0, (LABELLING,), train_ids, initial(), work, SCAFFOLD, run="run", shared=shared)


def test_a_job_asked_twice_is_answered_twice_the_equal(tmp_path: Path) -> None:
    site, train_ids, _ = make_site(tmp_path, "a", 9)
    answers = [site.answer(job(train_ids, asked)) for asked in (1, 2, 2, 3, 1, 2)]
    updates = [answer.update for answer in answers if isinstance(answer, TrainAnswer)]
    assert len(updates) == len(answers)
    assert torch.equal(updates[1], updates[2])
    assert torch.equal(updates[0], updates[4])
    assert torch.equal(updates[1], updates[5])


def test_a_site_that_diverged_keeps_what_it_had_before(tmp_path: Path) -> None:
    site, train_ids, _ = make_site(tmp_path, "a", 9)
    site.answer(job(train_ids, 1))
    before = site.store.recall("run", 2)
    diverged = site.answer(job(train_ids, 2, replace(WORK, epochs=5, learning_rate=1e38)))
    assert isinstance(diverged, TrainAnswer)
    assert not diverged.update.isfinite().all()
    after = site.store.recall("run", 3)
    assert after.keys() == before.keys() == {"control"}
    assert torch.equal(after["control"], before["control"])


def test_a_site_without_a_rule_that_remembers_keeps_nothing(tmp_path: Path) -> None:
    engine, snapshots = sites_in(tmp_path)
    train(TrainingPlan((LABELLING,), snapshots, 2, 3, Strategy(WORK)), initial(), engine, tmp_path / "states")
    assert not list(tmp_path.glob("*/memory"))


# -- runs -------------------------------------------------------------------------------------------------------


@dataclass
class Lossy:
    """Sites whose answers are lost on the way in some rounds: they did the work, and nobody learns of it."""

    engine: LocalEngine
    lost: Callable[[int], bool] = lambda _: False

    @property
    def population(self) -> list[str]:
        return self.engine.population

    def collect(self, plan: TrainingPlan, state: TrainingState) -> tuple[Gathered, Context]:
        return collect_by_asking(self, plan, state)

    def ask(self, jobs: Mapping[str, Job]) -> Iterator[tuple[str, Answer | Failure]]:
        for name, answer in self.engine.ask(jobs):
            asked = jobs[name]
            assert isinstance(asked, TrainJob)
            yield name, Failure(f"{name}: lost") if self.lost(asked.round) else answer


@pytest.mark.parametrize("stacked", [True, False])
def test_a_rule_finds_at_each_round_what_it_left_at_the_last_that_counted(tmp_path: Path, stacked: bool) -> None:
    """Against a loop that keeps every site's memory itself; rounds 3, 4 and 6 are abandoned."""
    engine, snapshots = sites_in(tmp_path, stacked)
    lost, rounds = {3, 4, 6}, 8
    plan = TrainingPlan((LABELLING,), snapshots, rounds, 3, Strategy(WORK, TRAIL))
    state = train(plan, initial(), Lossy(engine, lambda now: now in lost), tmp_path / "states")
    assert state.abandoned == (3, 4, 6)

    weights, shared = LAYOUT.flatten(initial()), torch.zeros(LAYOUT.size)
    trail = {name: torch.zeros(LAYOUT.size) for name in SIZES}
    for now in range(1, rounds + 1):
        sent = {}
        for name, site in engine.sites.items():
            plain = TrainJob(now, plan.seed, (LABELLING,), snapshots[name], LAYOUT.unflatten(weights), WORK)
            answer = site.answer(plain)
            assert isinstance(answer, TrainAnswer)
            sent[name] = answer.update + 0.5 * trail[name]
        if now not in lost:
            trail = sent
            mean = sum(SIZES[name] * update for name, update in sent.items()) / sum(SIZES.values())
            shared = mean + 0.1 * shared
            weights = weights + shared
    assert torch.allclose(LAYOUT.flatten(state.parameters), weights, rtol=0, atol=1e-5)
    assert torch.allclose(state.shared, shared, rtol=0, atol=1e-5)


@each_rule
@pytest.mark.parametrize("stacked", [True, False])
def test_a_run_taken_up_at_an_earlier_checkpoint_ends_with_the_same_bits(
    tmp_path: Path, rule: LocalRule, stacked: bool
) -> None:
    """Over the same sites, who remember what the server took back: also where it has to start again."""
    engine, snapshots = sites_in(tmp_path / "sites", stacked)
    lossy = Lossy(engine, lambda now: now % 5 in (2, 3))
    plan = plan_over(snapshots, MEMORIES_KEPT * 2, rule)
    saved: dict[int, tuple[str, bytes]] = {}

    def save(state: TrainingState) -> None:
        newest = max((tmp_path / "whole").iterdir())
        saved[state.round] = newest.name, newest.read_bytes()

    end = train(plan, initial(), lossy, tmp_path / "whole", save)
    assert {record.abandoned is None for record in end.log} == {True, False}
    for back in (*range(1, KEPT + 1), MEMORIES_KEPT - 1, plan.rounds):
        folder = tmp_path / f"back-{back}"
        folder.mkdir()
        if back < plan.rounds:
            name, content = saved[plan.rounds - back]
            (folder / name).write_bytes(content)
        assert equal(train(plan, initial(), lossy, folder), end), back


def test_a_server_that_goes_back_too_far_is_told_so(tmp_path: Path) -> None:
    engine, snapshots = sites_in(tmp_path / "sites")
    plan = replace(plan_over(snapshots, MEMORIES_KEPT + 2, TRAIL), cohort=Cohort())
    early = tmp_path / "early"
    train(replace(plan, rounds=1), initial(), engine, early)
    train(plan, initial(), engine, tmp_path / "whole")
    state = train(replace(plan, rounds=2), initial(), engine, early)
    assert "no longer has what it kept before round 2" in (state.log[-1].abandoned or "")


@each_rule
def test_another_run_over_the_same_sites_starts_with_nothing(tmp_path: Path, rule: LocalRule) -> None:
    engine, snapshots = sites_in(tmp_path / "used")
    fresh, same_snapshots = sites_in(tmp_path / "fresh")
    assert snapshots == same_snapshots
    base = plan_over(snapshots, 4, rule)
    plans = [base, replace(base, cohort=Cohort(goal=1)), replace(base, cohort=Cohort(goal=2)), replace(base, seed=4)]
    for place, plan in enumerate(plans):
        used = train(plan, initial(place), engine, tmp_path / f"states-{place}")
        fresh, _ = sites_in(tmp_path / f"fresh-{place}")
        assert equal(used, train(plan, initial(place), fresh, tmp_path / f"others-{place}")), place


@dataclass
class Away(Lossy):
    """Sites one of which is away in the first round: it does no work."""

    def ask(self, jobs: Mapping[str, Job]) -> Iterator[tuple[str, Answer | Failure]]:
        gone = {"a"} if any(isinstance(job, TrainJob) and job.round == 1 for job in jobs.values()) else set()
        yield from ((name, Failure(f"{name}: away")) for name in gone)
        yield from super().ask({name: job for name, job in jobs.items() if name not in gone})


@pytest.mark.parametrize("rule", [TRAIL, SCAFFOLD], ids=lambda rule: rule.name)
def test_a_run_of_the_same_plan_from_other_weights_starts_with_nothing(tmp_path: Path, rule: LocalRule) -> None:
    """Also at a site that had no part in the round in which the run before kept something."""
    engine, snapshots = sites_in(tmp_path / "used")
    plan = replace(plan_over(snapshots, 3, rule), cohort=Cohort(minimum=0.5))
    train(replace(plan, start="one"), initial(1), engine, tmp_path / "states-1")
    other = replace(plan, start="two")
    used = train(other, initial(2), Away(engine), tmp_path / "states-2")
    fresh, _ = sites_in(tmp_path / "fresh")
    assert equal(used, train(other, initial(2), Away(fresh), tmp_path / "others"))


@each_rule
def test_a_run_that_is_made_longer_is_one_run(tmp_path: Path, rule: LocalRule) -> None:
    engine, snapshots = sites_in(tmp_path / "sites")
    train(plan_over(snapshots, 3, rule), initial(), engine, tmp_path / "states")
    longer = train(plan_over(snapshots, 6, rule), initial(), engine, tmp_path / "states")
    assert equal(longer, train(plan_over(snapshots, 6, rule), initial(), engine, tmp_path / "whole"))
