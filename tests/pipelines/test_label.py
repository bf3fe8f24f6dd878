"""Labels within a budget: never a row more than paid for, never a row paid for twice, no guess where rows disagree."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tiny_sites import TINY, make_site

from pipelines.federated.engines.local import LocalEngine
from pipelines.federated.site import OracleAnnotator, Site
from pipelines.federated.store import SiteStore
from pipelines.label import agreed_labels, label, share_out
from pipelines.settings import LabelSettings

SIZES = {"a": 50, "b": 70, "c": 30}
ROWS = sum(SIZES.values())


class Fleet:
    """Sites with one annotator, whose every reveal is counted."""

    def __init__(self, root: Path, annotator: OracleAnnotator | None = None) -> None:
        self.oracle = annotator or OracleAnnotator()
        self.snapshots: dict[str, tuple[str, ...]] = {}
        sites = {}
        for i, (name, size) in enumerate(SIZES.items()):
            made, self.snapshots[name], _ = make_site(root, name, size, seed=i)
            sites[name] = Site(TINY, made.store, self.oracle)
        self.engine = LocalEngine(sites)

    def paid(self) -> int:
        return sum(len(site.store.annotations()) for site in self.engine.sites.values())


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


def chosen(**values: float) -> LabelSettings:
    return LabelSettings(**({"budget_share": 0.2, "per_cluster": 2, "lloyd_rounds": 2, "spread_weight": 0.5} | values))


def test_labels_spread_correctly_and_the_figures_are_those_of_the_files(fleet: Fleet) -> None:
    done = label(fleet.engine, fleet.snapshots, ROWS, chosen(), 0)
    tables = {name: site.store.labels(done.id) for name, site in fleet.engine.sites.items()}
    how = [kind for table in tables.values() for kind in table["how"]]
    assert how.count("bought") == done.bought == done.newly_bought == fleet.paid() == fleet.oracle.revealed
    assert how.count("spread") == done.spread > 0
    assert done.coverage == pytest.approx(len(how) / ROWS)
    right, spread = 0, 0
    for name, table in tables.items():
        truth = fleet.engine.sites[name].store.truth(table["row_id"]).to_numpy(dtype=int)
        bought = (table["how"] == "bought").to_numpy()
        assert (table["label"].to_numpy()[bought] == truth[bought]).all()
        assert set(table["weight"][bought]) <= {1.0}
        assert set(table["weight"][~bought]) <= {0.5}
        right += int((table["label"].to_numpy()[~bought] == truth[~bought]).sum())
        spread += int((~bought).sum())
    assert done.accuracy == pytest.approx(right / spread)
    assert done.accuracy > 0.95, "three plain patterns"


@given(share=st.floats(0.01, 1.0), per_cluster=st.integers(1, 4), near=st.floats(0.05, 1.0), seed=st.integers(0, 99))
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_never_more_than_the_budget_is_bought(
    tmp_path_factory: pytest.TempPathFactory, share: float, per_cluster: int, near: float, seed: int
) -> None:
    fleet = Fleet(tmp_path_factory.mktemp("fleet"))
    options = chosen(budget_share=share, per_cluster=per_cluster, near_quantile=near)
    done = label(fleet.engine, fleet.snapshots, ROWS, options, seed)
    budget = max(1, int(share * ROWS))
    assert 1 <= done.bought <= budget
    assert fleet.oracle.revealed == fleet.paid() == done.bought
    if near == 1.0:
        assert done.bought == budget, "there was money left and rows to buy"


def test_a_row_is_paid_for_once_however_often_it_is_drawn(fleet: Fleet) -> None:
    first = label(fleet.engine, fleet.snapshots, ROWS, chosen(), 0)
    again = label(fleet.engine, fleet.snapshots, ROWS, chosen(), 0)
    assert again.id == first.id
    assert (again.bought, again.newly_bought) == (first.bought, 0)
    assert fleet.oracle.revealed == first.bought
    larger = label(fleet.engine, fleet.snapshots, ROWS, chosen(budget_share=0.4), 1)
    assert fleet.oracle.revealed == fleet.paid() == first.bought + larger.newly_bought
    assert larger.newly_bought < larger.bought


def test_an_annotator_who_leaves_rows_out_is_not_paid_for_them(tmp_path: Path) -> None:
    class Reluctant(OracleAnnotator):
        def label(self, store: SiteStore, row_ids: Sequence[str]) -> dict[str, int]:
            return super().label(store, [row for row in row_ids if row < "8"])

    fleet = Fleet(tmp_path, Reluctant())
    done = label(fleet.engine, fleet.snapshots, ROWS, chosen(), 0)
    assert 0 < done.bought == fleet.paid() == fleet.oracle.revealed < 30


def test_where_bought_rows_disagree_nothing_spreads(tmp_path: Path) -> None:
    class Contrary(OracleAnnotator):
        """Says another class of every second row."""

        def label(self, store: SiteStore, row_ids: Sequence[str]) -> dict[str, int]:
            return {row: i % 3 for i, row in enumerate(sorted(super().label(store, row_ids)))}

    fleet = Fleet(tmp_path, Contrary())
    done = label(fleet.engine, fleet.snapshots, ROWS, chosen(per_cluster=10), 0)
    assert done.bought > 20
    assert done.agreeing == 0.0
    assert done.spread == 0
    for site in fleet.engine.sites.values():
        assert set(site.store.labels(done.id)["how"]) <= {"bought"}


def test_no_weight_no_spread(fleet: Fleet) -> None:
    assert label(fleet.engine, fleet.snapshots, ROWS, chosen(spread_weight=0.0), 0).spread == 0


def test_a_label_speaks_for_its_cluster_at_sites_that_bought_none(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    done = label(fleet.engine, fleet.snapshots, ROWS, chosen(budget_share=0.02, per_cluster=1), 0)
    assert done.bought == 3
    for site in fleet.engine.sites.values():
        assert set(site.store.labels(done.id)["label"]) == {0, 1, 2}


histograms = st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=3), min_size=1, max_size=6)


@given(histogram=histograms)
def test_a_cluster_has_a_label_exactly_when_all_its_annotated_rows_share_it(histogram: list[list[int]]) -> None:
    found = agreed_labels(np.array(histogram))
    for row, said in zip(histogram, found, strict=True):
        classes = [index for index, count in enumerate(row) if count]
        assert said == (classes[0] if len(classes) == 1 else -1)


@st.composite
def stocks(draw: st.DrawFn) -> dict[str, NDArray[np.int64]]:
    clusters = draw(st.integers(1, 6))
    row = st.lists(st.integers(0, 9), min_size=clusters, max_size=clusters)
    return {f"site-{i}": np.array(draw(row), dtype=np.int64) for i in range(draw(st.integers(1, 4)))}


@given(stock=stocks(), budget=st.integers(1, 80), per_cluster=st.integers(1, 5), seed=st.integers(0, 2**31))
@settings(deadline=None)
def test_quotas_keep_to_the_stock_and_spend_the_budget_while_there_are_rows(
    stock: dict[str, NDArray[np.int64]], budget: int, per_cluster: int, seed: int
) -> None:
    quota = share_out(stock, budget, per_cluster, seed)
    assert quota.keys() == stock.keys()
    assert all((quota[site] >= 0).all() and (quota[site] <= stock[site]).all() for site in stock)
    total, available = sum(quota.values()), sum(stock.values())
    assert total.sum() == min(budget, available.sum())
    if budget >= per_cluster * len(total):
        assert (total >= np.minimum(per_cluster, available)).all(), "a cluster has nobody to speak for it"
    again = share_out(stock, budget, per_cluster, seed)
    assert all(np.array_equal(quota[site], again[site]) for site in stock)
