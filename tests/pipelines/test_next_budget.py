"""The causes of errors steer the next labels: more where nothing like the errors was learned, and never more in all."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from test_diagnose import diagnosed, federation
from tiny_sites import TINY, rows_of

from pipelines.federated.causes import CAUSES, UNSEEN
from pipelines.federated.engines.local import LocalEngine
from pipelines.federated.site import sites_of
from pipelines.federated.store import SiteStore
from pipelines.ingest import ingest
from pipelines.label import label
from pipelines.next_budget import NextBudget, in_proportion, load, next_budget, save
from pipelines.settings import LabelSettings


@given(st.integers(0, 1000), arrays(np.int64, 6, elements=st.integers(0, 40)))
def test_whole_parts_are_within_one_of_the_exact_ones(total: int, weights: np.ndarray) -> None:  # type: ignore[type-arg]
    parts = in_proportion(total, weights)
    if weights.sum():
        assert parts.sum() == total
        assert (np.abs(parts - total * weights / weights.sum()) < 1).all()
    else:
        assert parts.sum() == 0


def test_only_what_was_unseen_asks_for_labels_and_the_file_keeps_it(tmp_path: Path) -> None:
    errors = np.arange(len(CAUSES) * 3).reshape(len(CAUSES), 3)
    wanted = next_budget(np.eye(3), errors)
    assert wanted.unseen.tolist() == errors[UNSEEN].tolist()
    assert wanted.share == errors[UNSEEN].sum() / errors.sum()
    assert next_budget(np.eye(3), 0 * errors).share == 0.0
    save(tmp_path / "wanted.npz", wanted)
    kept = load(tmp_path / "wanted.npz")
    assert kept is not None
    assert kept.id == wanted.id
    assert load(tmp_path / "another.npz") is None


def test_a_class_that_nobody_had_learned_gets_more_of_the_same_budget(
    tmp_path: Path,
) -> None:
    engine, learned = federation(tmp_path / "sites", without=2)
    found = diagnosed(engine, learned)
    wanted = next_budget(found.centroids, found.clusters)
    assert wanted.share == 1.0
    new = {}
    for seed, (name, site) in enumerate(engine.sites.items()):
        new[name] = ingest(site.store, TINY, rows_of(40, 4000 + seed), "train", "new").snapshots[-1:]

    def bought(case: str, strategy: str, wanted: NextBudget | None, **more: float) -> list[int]:
        """Labels by class, over all sites as they are before any is bought."""
        shutil.copytree(tmp_path / "sites", tmp_path / case)
        stores = {name: SiteStore(tmp_path / case / name) for name in engine.sites}
        settings = LabelSettings(budget_share=0.2, strategy=strategy, spread="none", **more)
        done = label(LocalEngine(sites_of(TINY, stores)), new, 120, settings, 0, wanted=wanted)
        assert done.bought == 24
        every = [label for store in stores.values() for label in store.annotations().values()]
        return list(np.bincount(every, minlength=3))

    before = bought("before", "central", None)
    assert bought("not asked", "central", wanted, error_share=0.0) == before
    assert bought("half", "central", wanted)[2] >= before[2] + 6
