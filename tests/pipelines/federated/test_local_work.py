"""Local work: every row once an epoch, torch's SGD, and the same alone and joined with others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_sites import CLASSES, initial, linear_model, pictures
from torch.nn.functional import cross_entropy

from models.draws import seeds_of
from models.images import to_tensor
from models.sensor import Sensor
from pipelines.federated.kernels.kernel import Kernel
from pipelines.federated.kernels.plain import plain
from pipelines.federated.kernels.stacked import stacked
from pipelines.federated.layout import Layout
from pipelines.federated.local_work import Augment, LabelledRows, join, local_updates, site_steps
from pipelines.federated.rules import PLAIN, LocalRule, Seats, Sent, Turn
from pipelines.federated.scaffold import SCAFFOLD
from pipelines.federated.stages import ClipByNorm, Stage
from pipelines.federated.steps import Steps
from pipelines.federated.work import LocalWork

WORKS = {
    "plain": LocalWork(epochs=2, batch_size=4),
    "momentum": LocalWork(epochs=2, batch_size=4, momentum=0.9),
    "decay": LocalWork(epochs=2, batch_size=4, momentum=0.5, weight_decay=0.1),
    "clipped": LocalWork(epochs=3, batch_size=4, learning_rate=0.5, momentum=0.9, weight_decay=0.01, clip_norm=0.2),
}
LAYOUT = Layout.of(initial())
KERNELS: dict[str, Callable[..., Kernel]] = {"plain": plain, "stacked": stacked}
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def rows(count: int, seed: int = 0) -> LabelledRows:
    labels = np.arange(count, dtype=np.int64) % CLASSES
    weights = np.random.default_rng(seed).choice([0.5, 1.0], count)
    images = pictures(labels, seed)
    return LabelledRows(images, torch.from_numpy(labels), torch.tensor(weights, dtype=torch.float32))


def batches(steps: Steps, site: int = 0) -> list[Batch]:
    """x, y and w of the real rows of each of a site's batches."""
    assert steps.weight is not None
    out = []
    for index, weight in list(zip(steps.index[site], steps.weight[site], strict=True))[: steps.steps[site]]:
        real = weight > 0
        out.append((steps.x[index[real]], steps.y[index[real]], weight[real]))
    return out


def own_seats(sites: int, rule: LocalRule = PLAIN) -> Seats:
    return Seats(LAYOUT, seeds_of(0, np.arange(sites)), {name: torch.zeros(sites, LAYOUT.size) for name in rule.memory})


def work_of(
    kernel: Kernel, steps: Steps, work: LocalWork, rule: LocalRule = PLAIN, stages: tuple[Stage, ...] = ()
) -> tuple[torch.Tensor, torch.Tensor]:
    start, shared = LAYOUT.flatten(initial()), rule.shared(LAYOUT.size)
    sent, losses = local_updates(kernel, steps, start, shared, work, rule, stages, own_seats(len(steps), rule))
    return sent.clone(), losses.clone()


# -- batches ----------------------------------------------------------------------------------------------------


@given(count=st.integers(1, 23), size=st.integers(1, 9), epochs=st.integers(1, 3), seed=st.integers(0, 2**62))
@settings(max_examples=50, deadline=None)
def test_an_epoch_sees_every_row_exactly_once_and_pads_with_weight_zero(
    count: int, size: int, epochs: int, seed: int
) -> None:
    own = rows(count)
    steps = site_steps(own, LocalWork(epochs=epochs, batch_size=size), seed, None)
    per_epoch = -(-count // size)
    assert steps.weight is not None
    assert steps.index.shape == steps.weight.shape == (1, epochs * per_epoch, size)
    assert steps.steps.tolist() == [epochs * per_epoch]
    assert steps.examples.tolist() == [float(own.weights.sum())]
    everything = sorted(image.tobytes() for image in to_tensor(own.images).numpy())
    pairs = {
        image.tobytes(): (int(label), float(weight))
        for image, label, weight in zip(to_tensor(own.images).numpy(), own.labels, own.weights, strict=True)
    }
    for epoch in range(epochs):
        part = batches(steps)[epoch * per_epoch : (epoch + 1) * per_epoch]
        seen = [image.tobytes() for x, _, _ in part for image in x.numpy()]
        assert sorted(seen) == everything
        assert [len(y) for _, y, _ in part[:-1]] == [size] * (per_epoch - 1)
        for x, y, w in part:
            assert [pairs[image.tobytes()] for image in x.numpy()] == list(zip(y.tolist(), w.tolist(), strict=True))
    padding = steps.weight[0].view(epochs, per_epoch, size)[:, -1, count - (per_epoch - 1) * size :]
    assert not padding.any()


def in_a_loop(own: LabelledRows, work: LocalWork, seed: int, augment: Augment | None) -> list[Batch]:
    """What a site sees, said plainly: each epoch in an order of its own, augmented, then half of the old rows through
    the new sensor, then cut.
    """
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    out = []
    for _ in range(work.epochs):
        order = rng.permutation(len(own))
        x, y, w = to_tensor(own.images)[order], own.labels[order], own.weights[order]
        if augment is not None:
            x = augment(x, generator)
        if own.sensor is not None and own.old is not None:
            chosen = torch.rand(len(own), generator=generator) < 0.5
            resensed = own.sensor(x, generator)
            x = torch.stack([resensed[i] if own.old[order[i]] and chosen[i] else x[i] for i in range(len(own))])
        size = work.batch_size or len(own)
        out += [(x[i : i + size], y[i : i + size], w[i : i + size]) for i in range(0, len(own), size)]
    return out


def shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return images + torch.rand((len(images), 1, 1, 1), generator=generator)


@given(
    count=st.integers(1, 23),
    size=st.integers(0, 9),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 2**62),
    augment=st.sampled_from([None, shifted]),
    sensor=st.sampled_from([None, Sensor(0.8, 0.02, 0.01)]),
)
@settings(max_examples=50, deadline=None)
def test_the_batches_are_a_plain_loops_over_epochs(
    count: int, size: int, epochs: int, seed: int, augment: Augment | None, sensor: Sensor | None
) -> None:
    own = replace(rows(count), old=torch.arange(count) % 3 > 0, sensor=sensor)
    work = LocalWork(epochs=epochs, batch_size=size)
    found, expected = batches(site_steps(own, work, seed, augment)), in_a_loop(own, work, seed, augment)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@given(count=st.integers(0, 23), size=st.integers(0, 9), updates=st.integers(1, 12), seed=st.integers(0, 2**62))
@settings(max_examples=25, deadline=None)
def test_a_number_of_updates_is_that_many_batches_of_as_many_epochs_as_it_takes(
    count: int, size: int, updates: int, seed: int
) -> None:
    found = site_steps(rows(count), LocalWork(batch_size=size, updates=updates), seed, shifted)
    assert found.steps.tolist() == [updates if count else 0]
    assert found.examples.tolist() == [float(rows(count).weights.sum())]
    if count:
        whole = batches(site_steps(rows(count), LocalWork(epochs=updates, batch_size=size), seed, shifted))
        for one, other in zip(batches(found), whole[:updates], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@given(count=st.integers(1, 23), among=st.integers(0, 200), size=st.integers(1, 9), epochs=st.integers(1, 3))
@settings(max_examples=50, deadline=None)
def test_few_labels_are_gone_over_as_often_as_takes_no_more_steps_than_all_rows_would(
    count: int, among: int, size: int, epochs: int
) -> None:
    few = replace(rows(count), among=max(among, count))
    work = LocalWork(epochs=epochs, batch_size=size)
    pass_, whole = -(-count // size), max(few.among // size, -(-count // size))
    steps = site_steps(few, work, 3, None)
    assert whole * epochs - epochs * pass_ < steps.steps[0] <= whole * epochs
    assert steps.steps[0] % (epochs * pass_) == 0, "whole passes"
    all_at_once = site_steps(few, LocalWork(epochs=epochs, batch_size=0), 3, None)
    assert all_at_once.steps[0] == epochs
    assert site_steps(few, replace(work, updates=4), 3, None).steps[0] == 4
    assert steps.examples[0] == few.weights.sum(), "its say in the mean is that of its labels"


def test_a_seed_draws_what_it_always_did() -> None:
    """Else checkpoints of earlier versions go on with other batches."""
    shades = np.arange(7, dtype=np.uint8).repeat(4).reshape(7, 2, 2, 1)
    old = torch.arange(7) < 5
    own = LabelledRows(shades, torch.arange(7), torch.ones(7), old, Sensor(0.0, 0.0, 1.0))
    drawn = batches(site_steps(own, LocalWork(epochs=2, batch_size=3), 5, shifted))
    first_pixels = [0.834173, 0.831692, 0.164392, 0.234150, 0.238370, 0.179572]
    assert [y.tolist() for _, y, _ in drawn] == [[1, 4, 2], [3, 6, 5], [0], [0, 1, 3], [6, 4, 2], [5]]
    assert [x[0, 0, 0, 0].item() for x, _, _ in drawn] == pytest.approx(first_pixels, abs=1e-5)


def test_batches_depend_on_the_seed_and_epochs_differ() -> None:
    work = LocalWork(epochs=2, batch_size=23)
    one, same, other = (batches(site_steps(rows(23), work, seed, None)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one[0] + one[1], same[0] + same[1], strict=True))
    assert not torch.equal(one[0][0], other[0][0])
    assert not torch.equal(one[0][0], one[1][0])


@pytest.mark.parametrize("size", [0, 3])
def test_a_site_without_rows_has_no_batches(size: int) -> None:
    steps = site_steps(rows(0), LocalWork(epochs=2, batch_size=size), 0, None)
    assert (len(steps), steps.steps.tolist(), steps.examples.tolist()) == (1, [0], [0.0])
    assert batches(steps) == []


@given(sizes=st.lists(st.integers(0, 17), min_size=1, max_size=5), size=st.integers(1, 6), epochs=st.integers(1, 2))
@settings(max_examples=25, deadline=None)
def test_joined_sites_keep_their_own_batches(sizes: list[int], size: int, epochs: int) -> None:
    work = LocalWork(epochs=epochs, batch_size=size)
    parts = [site_steps(rows(count, seed=i), work, i, None) for i, count in enumerate(sizes)]
    joined = join(parts)
    assert len(joined) == len(parts)
    assert joined.examples.tolist() == [float(part.examples[0]) for part in parts]
    for site, part in enumerate(parts):
        alone, together = batches(part), batches(joined, site)
        assert len(alone) == len(together) == part.steps[0] == joined.steps[site]
        for one, other in zip(alone, together, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        assert joined.weight is not None
        assert not joined.weight[site, joined.steps[site] :].any(), "beyond its own batches a site stands still"


# -- steps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("work", WORKS.values(), ids=WORKS)
def test_one_sites_work_is_torch_sgd_step_by_step(work: LocalWork, kernel: Callable[..., Kernel]) -> None:
    whole = site_steps(rows(14), work, 3, None)
    assert whole.weight is not None
    run = kernel(linear_model(), LAYOUT)
    for upto in range(1, int(whole.steps[0]) + 1):
        steps = replace(whole, index=whole.index[:, :upto], weight=whole.weight[:, :upto], steps=np.array([upto]))
        sent, loss = work_of(run, steps, work)

        model = linear_model().double()
        model.load_state_dict(initial())
        optimizer = torch.optim.SGD(
            model.parameters(), lr=work.learning_rate, momentum=work.momentum, weight_decay=work.weight_decay
        )
        losses = []
        for x, y, w in batches(steps):
            optimizer.zero_grad()
            value = (cross_entropy(model(x.double()), y, reduction="none") * w).sum() / w.sum()
            value.backward()
            if work.clip_norm:
                torch.nn.utils.clip_grad_norm_(model.parameters(), work.clip_norm)
            optimizer.step()
            losses.append(value.item())
        for name, parameter in model.named_parameters():
            delta = LAYOUT.unflatten(sent[0])[name]
            assert torch.allclose(initial()[name] + delta, parameter.float(), rtol=0, atol=1e-5), (upto, name)
        assert loss[0].item() == pytest.approx(np.mean(losses), abs=1e-5)


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_padding_moves_nothing(kernel: Callable[..., Kernel]) -> None:
    work = LocalWork(epochs=1, batch_size=4, momentum=0.9, clip_norm=0.5)
    own, run = rows(4), kernel(linear_model(), LAYOUT)
    bare, bare_loss = work_of(run, site_steps(own, work, 0, None), work)
    same, same_loss = work_of(run, site_steps(own, replace(work, batch_size=7), 0, None), work)
    assert torch.allclose(bare, same, rtol=0, atol=1e-7)
    assert torch.allclose(bare_loss, same_loss, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("rule", [PLAIN, SCAFFOLD], ids=lambda rule: rule.name)
@given(sizes=st.lists(st.integers(0, 17), min_size=1, max_size=5), work=st.sampled_from(list(WORKS.values())))
@settings(max_examples=12, deadline=None)
def test_sites_stepped_together_do_what_each_does_alone(
    kernel: Callable[..., Kernel], rule: LocalRule, sizes: list[int], work: LocalWork
) -> None:
    steps = [site_steps(rows(size, seed=i), work, i, None) for i, size in enumerate(sizes)]
    clip = (ClipByNorm(0.3),)
    together, losses = work_of(kernel(linear_model(), LAYOUT), join(steps), work, rule, clip)
    for site, own in enumerate(steps):
        alone, alone_loss = work_of(plain(linear_model(), LAYOUT), own, work, rule, clip)
        assert torch.allclose(together[site], alone[0], rtol=1e-5, atol=1e-5)
        assert losses[site].item() == pytest.approx(alone_loss[0].item(), abs=1e-5)


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_local_work_leaves_the_weights_it_was_given_alone(kernel: Callable[..., Kernel]) -> None:
    start, shared = LAYOUT.flatten(initial()), torch.ones(LAYOUT.size)
    before = start.clone()
    work, rule = WORKS["momentum"], SCAFFOLD
    seats = own_seats(3, rule)
    kept = seats.memory["control"]
    steps = join([site_steps(rows(5), work, i, None) for i in range(3)])
    local_updates(kernel(linear_model(), LAYOUT), steps, start, shared, work, rule, (ClipByNorm(0.1),), seats)
    assert torch.equal(start, before)
    assert torch.equal(shared, torch.ones(LAYOUT.size))
    assert not kept.any()
    assert seats.memory["control"].any(), "what the sites keep replaces what they had"


def _twice(turn: Turn) -> Sent:
    first, before = (part.clone() for part in turn.train(turn.start))
    second, after = turn.train(turn.start + first, proximal=0.0)
    return torch.cat([first + second, before[:, None], after[:, None]], dim=1), after


TWICE = LocalRule("twice", _twice, absorb=lambda mean, shared, share_of_population: (mean[:-2], shared))
"""Train, train again from there without a pull, and send the way and both losses along."""


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_stages_see_the_update_and_what_a_rule_adds_travels_as_it_is(kernel: Callable[..., Kernel]) -> None:
    work = LocalWork(epochs=2, batch_size=4, proximal=3.0)
    steps = join([site_steps(rows(7, seed=i), work, i, None) for i in range(3)])
    run = kernel(linear_model(), LAYOUT)
    whole, losses = work_of(run, steps, work, TWICE)
    clipped, same = work_of(run, steps, work, TWICE, (ClipByNorm(0.05), ClipByNorm(0.01)))
    size = LAYOUT.size
    assert whole.shape == clipped.shape == (3, size + 2)
    assert (whole[:, :size].norm(dim=1) > 0.05).all()
    assert torch.allclose(clipped[:, :size].norm(dim=1), torch.tensor(0.01), rtol=1e-4)
    assert torch.equal(clipped[:, size:], whole[:, size:])
    assert torch.equal(whole[:, -1], losses)
    assert torch.equal(losses, same)
    assert (losses < whole[:, -2]).all(), "the second time it starts where the first ended"
    first, _ = work_of(run, steps, work)
    start = LAYOUT.flatten(initial()) + first
    unpulled, _ = (part.clone() for part in run(start, steps, replace(work, proximal=0.0)))
    assert torch.allclose(whole[:, :size], first + unpulled, rtol=0, atol=1e-6)
