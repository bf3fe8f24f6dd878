"""Compression: the bytes are real, the draws are the site's own, and what is lost is what the papers say."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from drawn_settings import SEED, case_of
from few_sites import run, weights_of
from hypothesis import given
from hypothesis import strategies as st

from models.errors import BadInput
from pipelines.federated.compression import Codec, ErrorFeedback, Quantise
from pipelines.federated.layout import Layout
from pipelines.federated.low_rank import LowRank
from pipelines.federated.rules import Seats
from pipelines.federated.sparse import RandomMask, TopK
from pipelines.federated.stages import ClipByNorm, Stage, sent_bytes
from pipelines.federated.strategies import fedavg
from pipelines.federated.strategy import Strategy
from pipelines.federated.work import LocalWork

CODECS: list[Codec] = [
    Quantise(8),
    Quantise(4, block=7),
    TopK(0.01),
    TopK(0.3),
    TopK(0.3, values=Quantise(8)),
    TopK(0.02, values=Quantise(4, block=3)),
    RandomMask(0.25),
    RandomMask(0.1, values=Quantise(4)),
    LowRank(1),
    LowRank(3),
]
UNBIASED = [codec for codec in CODECS if isinstance(codec, Quantise) or not codec.contracts]
LOSSY: list[Stage] = [*CODECS, *(ErrorFeedback(codec) for codec in CODECS if codec.contracts)]

layouts = st.lists(st.lists(st.integers(1, 9), min_size=0, max_size=3), min_size=1, max_size=4).map(
    lambda shapes: Layout(tuple(f"p{i}" for i in range(len(shapes))), tuple(tuple(shape) for shape in shapes))
)


def seats_of(layout: Layout, sites: int, seed: int = 0, stage: Stage | None = None) -> Seats:
    memory = {name: torch.zeros(sites, layout.size) for name in (stage.memory if stage else ())}
    return Seats(layout, np.arange(seed, seed + sites, dtype=np.uint64), memory)


def drawn(layout: Layout, sites: int, seed: int) -> torch.Tensor:
    """Updates of uneven scale, some coordinates exactly 0."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(sites, layout.size)) * 10.0 ** rng.integers(-6, 2, (sites, layout.size))
    return torch.from_numpy((values * (rng.random((sites, layout.size)) > 0.1)).astype(np.float32))


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
@given(layouts, st.integers(1, 3), st.integers(0, 2**31))
def test_what_the_server_decodes_is_what_the_stage_gives_and_its_size_is_counted(
    codec: Codec, layout: Layout, sites: int, seed: int
) -> None:
    updates, seats = drawn(layout, sites, seed), seats_of(layout, sites, seed)
    found = codec.on_site(updates.clone(), seats)
    for site in range(sites):
        alone = Seats(layout, seats.seeds[site : site + 1])
        data = codec.encode(updates[site], alone)
        assert len(data) == codec.size_bytes(layout)
        decoded = codec.decode(data, alone)
        if isinstance(codec, LowRank):  # a stack's matrix products round differently from a lone one's
            assert torch.allclose(decoded, found[site], rtol=1e-4, atol=1e-5 * float(updates[site].abs().max()))
        else:
            assert torch.equal(decoded, found[site])


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_the_encoding_holds_for_a_model_of_many_pages(codec: Codec) -> None:
    layout = Layout(("w", "b"), ((300, 600), (23,)))
    updates, seats = drawn(layout, 1, 5), seats_of(layout, 1)
    data = codec.encode(updates[0], seats)
    assert len(data) == codec.size_bytes(layout) < 2.1 * layout.size
    assert torch.allclose(codec.decode(data, seats), codec.on_site(updates, seats)[0], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("stage", LOSSY, ids=lambda stage: stage.name)
@given(layouts, st.integers(0, 2**31))
def test_a_site_sends_the_same_in_any_company(stage: Stage, layout: Layout, seed: int) -> None:
    updates = drawn(layout, 3, seed)
    together = stage.on_site(updates.clone(), seats_of(layout, 3, seed, stage))
    alone = stage.on_site(updates[1:2].clone(), seats_of(layout, 1, seed + 1, stage))
    assert torch.allclose(together[1], alone[0], rtol=1e-4, atol=1e-5 * float(updates[1].abs().max()))


@pytest.mark.parametrize("stage", LOSSY, ids=lambda stage: stage.name)
def test_a_stage_is_a_value_that_says_its_name_and_leaves_its_input_alone(stage: Stage) -> None:
    assert pickle.loads(pickle.dumps(stage)) == stage  # noqa: S301 (our own bytes)
    layout = Layout(("w",), ((4, 30),))
    updates = drawn(layout, 2, 1)
    before = updates.clone()
    sent = stage.on_site(updates, seats_of(layout, 2, stage=stage))
    assert torch.equal(updates, before)
    assert sent.shape == updates.shape
    assert not torch.equal(sent, updates)
    assert torch.equal(stage.on_server(sent[0]), sent[0])
    assert not stage.on_site(torch.zeros_like(updates), seats_of(layout, 2, stage=stage)).any()


def test_no_two_stages_share_a_name() -> None:
    assert len({stage.name for stage in LOSSY}) == len(LOSSY)


@pytest.mark.parametrize("codec", UNBIASED, ids=lambda codec: codec.name)
def test_the_mean_over_many_sites_is_the_update(codec: Codec) -> None:
    layout = Layout(("w",), ((40,),))
    update = torch.from_numpy(np.random.default_rng(3).normal(size=(1, 40)).astype(np.float32))
    sites = 8_000
    sent = codec.on_site(update.expand(sites, -1), seats_of(layout, sites)).double()
    off = (sent.mean(dim=0) - update[0]).abs()
    assert bool((off <= 5 * sent.std(dim=0) / sites**0.5 + 1e-6).all())
    assert float(sent.std(dim=0).max()) > 0.01


@given(st.sampled_from([4, 8]), st.integers(1, 20), layouts, st.integers(0, 2**31))
def test_quantising_is_off_by_less_than_one_level(bits: int, block: int, layout: Layout, seed: int) -> None:
    updates = drawn(layout, 2, seed)
    off = (Quantise(bits, block).on_site(updates, seats_of(layout, 2, seed)) - updates).abs()
    for site in range(2):
        for first in range(0, layout.size, block):
            part = slice(first, first + block)
            level = float(updates[site, part].abs().max()) / (2 ** (bits - 1) - 1)
            assert float(off[site, part].max()) <= level * (1 + 1e-5)


@given(st.floats(0.01, 1.0), layouts, st.integers(0, 2**31))
def test_top_k_keeps_the_largest_and_no_choice_of_as_many_is_nearer(share: float, layout: Layout, seed: int) -> None:
    updates = drawn(layout, 1, seed)
    sent = TopK(share).on_site(updates, seats_of(layout, 1))[0]
    kept = max(1, round(share * layout.size))
    expected = updates[0].abs().sort(descending=True).values[:kept]
    assert torch.equal(sent.abs().sort(descending=True).values[:kept], expected)
    assert bool(((sent == 0) | (sent == updates[0])).all())


def test_low_rank_is_as_near_as_the_singular_values_allow_within_a_tenth() -> None:
    layout = Layout(("w", "b"), ((30, 20), (20,)))
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(30, 20)) @ np.diag(0.6 ** np.arange(20)) @ rng.normal(size=(20, 20))
    update = torch.from_numpy(np.concatenate([matrix.ravel(), rng.normal(size=20)]).astype(np.float32))[None]
    sent = LowRank(4).on_site(update, seats_of(layout, 1))
    off = float((sent - update).norm())
    best = np.sqrt((np.linalg.svd(matrix, compute_uv=False)[4:] ** 2).sum())
    assert best <= off * (1 + 1e-5)
    assert off < 1.1 * best
    assert torch.equal(sent[0, 600:], update[0, 600:])
    assert np.linalg.matrix_rank(sent[0, :600].view(30, 20).numpy(), tol=1e-3) == 4


@pytest.mark.parametrize("codec", [codec for codec in CODECS if codec.contracts], ids=lambda codec: codec.name)
def test_with_error_feedback_nothing_is_lost_for_good(codec: Codec) -> None:
    """What was sent and what is still kept add up to all that was to be sent, and the residual stays bounded."""
    layout = Layout(("w",), ((12, 10),))
    stage = ErrorFeedback(codec)
    seats, total, sent = seats_of(layout, 2, stage=stage), torch.zeros(2, 120), torch.zeros(2, 120)
    rng = np.random.default_rng(0)
    for number in range(200):
        update = torch.from_numpy(rng.normal(size=(2, 120)).astype(np.float32))
        seats = replace(seats, seeds=np.arange(2, dtype=np.uint64) + np.uint64(2 * number))
        total, sent = total + update, sent + stage.on_site(update, seats)
    assert torch.allclose(sent + seats.memory["residual"], total, atol=1e-2)
    assert float(seats.memory["residual"].norm(dim=1).max()) < 200 * 120**0.5


def test_error_feedback_brings_top_k_back_to_the_uncompressed_result() -> None:
    rounds = [[0, 1, 2, 3]] * 40
    case = case_of([10, 12, 8, 10], rounds, work=LocalWork(batch_size=0, learning_rate=0.2, weight_decay=0.05))
    plainly = weights_of(run(fedavg(case.work), case.sites, SEED))
    off = []
    for stage in (TopK(0.05), ErrorFeedback(TopK(0.05))):
        found = weights_of(run(replace(fedavg(case.work), stages=(stage,)), case.sites, SEED))
        off.append(float(np.linalg.norm(found - plainly)))
    assert off[1] < 0.5 * off[0]


def test_error_feedback_refuses_a_mask() -> None:
    with pytest.raises(BadInput, match=r"mask\(0.1\).*without bound"):
        ErrorFeedback(RandomMask(0.1))


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_update_that_is_not_finite_does_not_become_finite(codec: Codec, value: float) -> None:
    layout = Layout(("w",), ((12, 10),))
    updates = torch.full((1, 120), value)
    assert not bool(codec.on_site(updates, seats_of(layout, 1)).isfinite().all())


def test_the_stage_that_encodes_decides_the_size_wherever_it_stands() -> None:
    layout = Layout(("w", "b"), ((200, 100), (100,)))
    kept = round(0.1 * layout.size)
    places = min(2 * kept + 4, -(-layout.size // 8))
    top: Stage = ErrorFeedback(TopK(0.1, values=Quantise(8)))
    for stages in ((top,), (ClipByNorm(1.0), top), (ClipByNorm(1.0), top, ClipByNorm(2.0))):
        assert sent_bytes(Strategy(stages=stages).stages, layout) == places + kept + 4 * -(-kept // 512)


@pytest.mark.parametrize("second", LOSSY, ids=lambda stage: stage.name)
def test_two_stages_that_encode_are_refused(second: Stage) -> None:
    """Of the first nothing would be left on the wire, and of two error feedbacks one residual."""
    for first in (Quantise(8), ErrorFeedback(TopK(0.1))):
        with pytest.raises(BadInput, match="leave one out"):
            Strategy(stages=(first, ClipByNorm(1.0), second))


@pytest.mark.parametrize("make", [lambda: Quantise(3), lambda: TopK(0.0), lambda: RandomMask(1.5), lambda: LowRank(0)])
def test_a_setting_that_makes_no_sense_is_refused(make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(BadInput):
        make()
