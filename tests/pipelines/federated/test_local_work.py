"""Local work: exactly torch's SGD, one site at a time or stacked, over every row once an epoch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_sites import CLASSES, LABELLING, initial, linear_model, make_engine, make_site, pictures
from torch.nn.functional import cross_entropy

from models.draws import draw_seed
from models.images import to_tensor
from pipelines.federated.engines.local import LocalEngine
from pipelines.federated.jobs import Failure, Parameters, TrainAnswer, TrainJob
from pipelines.federated.local_work import Batch, LabelledRows, batches, train_one, train_stacked
from pipelines.federated.plan import TrainingPlan
from pipelines.federated.stages import ClipByNorm
from pipelines.federated.strategy import Strategy
from pipelines.federated.training import train
from pipelines.federated.work import LocalWork

WORKS = {
    "plain": LocalWork(epochs=2, batch_size=4),
    "momentum": LocalWork(epochs=2, batch_size=4, momentum=0.9),
    "decay": LocalWork(epochs=2, batch_size=4, momentum=0.5, weight_decay=0.1),
    "clipped": LocalWork(epochs=3, batch_size=4, learning_rate=0.5, momentum=0.9, weight_decay=0.01, clip_norm=0.2),
}


def rows(count: int, seed: int = 0) -> LabelledRows:
    labels = np.arange(count, dtype=np.int64) % CLASSES
    weights = np.random.default_rng(seed).choice([0.5, 1.0], count)
    images = pictures(labels, seed)
    return LabelledRows(images, torch.from_numpy(labels), torch.tensor(weights, dtype=torch.float32))


def doubled(steps: list[Batch]) -> list[Batch]:
    return [Batch(b.x.double(), b.y, b.w.double()) for b in steps]


@pytest.mark.parametrize("work", WORKS.values(), ids=WORKS)
def test_one_sites_work_is_torch_sgd_step_by_step(work: LocalWork) -> None:
    steps = doubled(batches(rows(14), work, 3, None))
    start = {name: tensor.double() for name, tensor in initial().items()}
    for upto in range(1, len(steps) + 1):
        delta, loss = train_one(linear_model().double(), start, steps[:upto], work)

        model = linear_model().double()
        model.load_state_dict(start)
        optimizer = torch.optim.SGD(
            model.parameters(), lr=work.learning_rate, momentum=work.momentum, weight_decay=work.weight_decay
        )
        losses = []
        for batch in steps[:upto]:
            real = batch.w > 0
            optimizer.zero_grad()
            each = cross_entropy(model(batch.x[real]), batch.y[real], reduction="none")
            value = (each * batch.w[real]).sum() / batch.w[real].sum()
            value.backward()
            if work.clip_norm:
                torch.nn.utils.clip_grad_norm_(model.parameters(), work.clip_norm)
            optimizer.step()
            losses.append(value.item())
        for name, parameter in model.named_parameters():
            # clip_grad_norm_ adds 1e-6 to the norm it divides by.
            tolerance = 1e-5 if work.clip_norm else 1e-12
            assert torch.allclose(start[name] + delta[name], parameter, rtol=0, atol=tolerance), (upto, name)
        assert loss == pytest.approx(np.mean(losses), abs=1e-6)


@given(count=st.integers(1, 23), size=st.integers(1, 9), epochs=st.integers(1, 3), seed=st.integers(0, 2**62))
@settings(max_examples=50, deadline=None)
def test_an_epoch_sees_every_row_exactly_once_and_pads_with_weight_zero(
    count: int, size: int, epochs: int, seed: int
) -> None:
    own = rows(count)
    steps = batches(own, LocalWork(epochs=epochs, batch_size=size), seed, None)
    per_epoch = -(-count // size)
    assert len(steps) == epochs * per_epoch
    everything = sorted(image.tobytes() for image in to_tensor(own.images).numpy())
    for epoch in range(epochs):
        part = steps[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert all(len(b.x) == len(b.y) == len(b.w) == size for b in part)
        real = [b.w > 0 for b in part]
        seen = [image.tobytes() for b, r in zip(part, real, strict=True) for image in b.x[r].numpy()]
        assert sorted(seen) == everything
        total = sum(float(b.w.sum()) for b in part)
        assert total == pytest.approx(float(own.weights.sum()))
    pairs = {
        image.tobytes(): int(label) for image, label in zip(to_tensor(own.images).numpy(), own.labels, strict=True)
    }
    for b in steps:
        for image, label, weight in zip(b.x.numpy(), b.y, b.w, strict=True):
            assert weight == 0 or pairs[image.tobytes()] == int(label)


def test_batches_depend_on_the_seed_and_epochs_differ() -> None:
    work = LocalWork(epochs=2, batch_size=23)
    one, same, other = (batches(rows(23), work, seed, None) for seed in (1, 1, 2))
    assert all(torch.equal(a.x, b.x) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one[0].x, other[0].x)
    assert not torch.equal(one[0].x, one[1].x)


def test_padding_moves_nothing() -> None:
    work = LocalWork(epochs=1, batch_size=4, momentum=0.9, clip_norm=0.5)
    steps = batches(rows(4), work, 0, None)
    padded = [
        Batch(
            torch.cat([b.x, torch.ones(3, 1, 8, 8)]),
            torch.cat([b.y, torch.ones(3).long()]),
            torch.cat([b.w, torch.zeros(3)]),
        )
        for b in steps
    ]
    bare, _ = train_one(linear_model(), initial(), steps, work)
    same, _ = train_one(linear_model(), initial(), padded, work)
    assert all(torch.allclose(bare[name], same[name], atol=1e-7) for name in bare)


@given(sizes=st.lists(st.integers(1, 17), min_size=1, max_size=5), work=st.sampled_from(list(WORKS.values())))
@settings(max_examples=12, deadline=None)
def test_sites_stepped_together_do_what_each_does_alone(sizes: list[int], work: LocalWork) -> None:
    steps = [batches(rows(size, seed=i), work, i, None) for i, size in enumerate(sizes)]
    together = train_stacked(linear_model(), initial(), steps, work)
    for own, (delta, loss) in zip(steps, together, strict=True):
        alone, alone_loss = train_one(linear_model(), initial(), own, work)
        assert max(float((delta[name] - alone[name]).abs().max()) for name in alone) < 1e-5
        assert loss == pytest.approx(alone_loss, abs=1e-5)


def test_local_work_leaves_the_weights_it_was_given_alone() -> None:
    start = initial()
    before = {name: tensor.clone() for name, tensor in start.items()}
    steps = [batches(rows(5), WORKS["momentum"], i, None) for i in range(3)]
    train_one(linear_model(), start, steps[0], WORKS["momentum"])
    train_stacked(linear_model(), start, steps, WORKS["momentum"])
    assert all(torch.equal(start[name], before[name]) for name in start)


def test_a_stacked_engine_trains_the_same_model_as_a_plain_one(tmp_path: Path) -> None:
    sizes = {"a": 5, "b": 23, "c": 12, "d": 31}
    results: list[Parameters] = []
    work = LocalWork(epochs=2, batch_size=6, momentum=0.9, weight_decay=1e-3)
    for stacked in (True, False):
        engine, snapshots = make_engine(tmp_path / str(stacked), sizes, stacked)
        plan = TrainingPlan((LABELLING,), snapshots, 6, 11, Strategy(work=work, stages=(ClipByNorm(0.8),)))
        state = train(plan, initial(), engine, tmp_path / f"states-{stacked}")
        assert [record.reports for record in state.log] == [4] * 6
        results.append(state.parameters)
    assert max(float((results[0][name] - results[1][name]).abs().max()) for name in results[0]) < 1e-5


@pytest.mark.parametrize("stacked", [True, False])
def test_a_failing_site_is_a_value_among_the_others_answers(tmp_path: Path, stacked: bool) -> None:
    engine, snapshots = make_engine(tmp_path, {"a": 6, "b": 6, "c": 6}, stacked)
    (tmp_path / "b" / "labels" / f"{LABELLING}.parquet").unlink()
    parameters = initial()
    asked = {name: TrainJob(1, 0, (LABELLING,), snapshots[name], parameters, LocalWork()) for name in snapshots}
    answers = dict(engine.ask(asked))
    assert list(answers) == ["a", "b", "c"]
    assert isinstance(answers["b"], Failure)
    assert "b has no labelling" in answers["b"].reason
    assert isinstance(answers["a"], TrainAnswer)
    assert isinstance(answers["c"], TrainAnswer)


def test_a_site_without_a_part_in_the_newest_labelling_learns_from_those_it_has(tmp_path: Path) -> None:
    site, train_ids, _ = make_site(tmp_path, "a", 9)
    job = TrainJob(1, 0, (LABELLING, "bought-elsewhere"), train_ids, initial(), LocalWork())
    answer = site.answer(job)
    assert isinstance(answer, TrainAnswer)
    assert answer.examples == 9


def test_a_bought_label_outranks_a_spread_one_of_an_earlier_labelling(tmp_path: Path) -> None:
    site, train_ids, _ = make_site(tmp_path, "a", 9)
    bought = site.store.labels(LABELLING)
    wrong = bought.assign(label=(bought["label"] + 1) % CLASSES, weight=0.5, how="spread")
    site.store.write_labels("earlier", wrong)
    job = TrainJob(1, 0, ("earlier", LABELLING), train_ids, initial(), LocalWork())
    answer, expected = site.answer(job), site.answer(TrainJob(1, 0, (LABELLING,), train_ids, initial(), LocalWork()))
    assert isinstance(answer, TrainAnswer)
    assert isinstance(expected, TrainAnswer)
    assert answer.examples == 9
    assert all(torch.equal(answer.delta[name], expected.delta[name]) for name in answer.delta)


def test_large_cohorts_are_stacked_in_chunks_and_keep_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.federated.engines.local.CHUNK", 2)
    engine, snapshots = make_engine(tmp_path, dict.fromkeys("abcde", 4), True)
    plain = LocalEngine(engine.sites, False)
    parameters = initial()
    asked = {name: TrainJob(1, 0, (LABELLING,), snapshots[name], parameters, LocalWork()) for name in snapshots}
    for (name, answer), (other, expected) in zip(engine.ask(asked), plain.ask(asked), strict=True):
        assert name == other
        assert isinstance(answer, TrainAnswer)
        assert isinstance(expected, TrainAnswer)
        assert max(float((answer.delta[k] - expected.delta[k]).abs().max()) for k in answer.delta) < 1e-5


def test_seeds_depend_on_every_part_and_on_nothing_else() -> None:
    parts = [(0, 1, "a"), (0, 2, "a"), (1, 1, "a"), (0, 1, "b"), (0, "1", "a")]
    assert len({draw_seed(*each) for each in parts}) == len(parts)
    assert draw_seed(0, 1, "a") == 2095904404771823253, "checkpoints of earlier versions go on with other batches"
    assert all(0 <= draw_seed(*each) < 2**63 for each in parts)
