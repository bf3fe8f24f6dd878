"""What a site learns from: its own labels, the better one of a row first."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_sites import CLASSES, LABELLING, TINY, initial, make_site, rows_of

from models.draws import draw_seed
from pipelines.federated.jobs import TrainAnswer, TrainJob
from pipelines.federated.work import LocalWork
from pipelines.ingest import ingest


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
    assert torch.equal(answer.update, expected.update)


def test_seeds_depend_on_every_part_and_on_nothing_else() -> None:
    parts = [(0, 1, "a"), (0, 2, "a"), (1, 1, "a"), (0, 1, "b"), (0, "1", "a")]
    assert len({draw_seed(*each) for each in parts}) == len(parts)
    assert draw_seed(0, 1, "a") == 2095904404771823253, "checkpoints of earlier versions go on with other batches"
    assert all(0 <= draw_seed(*each) < 2**63 for each in parts)


def test_rows_that_wait_for_labels_do_not_lengthen_an_epoch_and_unlabelled_ones_beside_labelled_do(
    tmp_path: Path,
) -> None:
    site, train, _ = make_site(tmp_path, "site-1", 12)
    table = site.store.labels(LABELLING)
    site.store.write_labels("few", table.head(3))
    new = ingest(site.store, TINY, rows_of(20, 99), "train", "new").snapshots
    assert site.labelled_rows((LABELLING,), train, ()).among == 12
    few = site.labelled_rows(("few",), (*train, *new), ())
    assert (len(few), few.among) == (3, 12)
