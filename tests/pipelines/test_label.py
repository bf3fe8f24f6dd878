"""Labels within a budget: never a row more than paid for, never a row paid for twice, no guess where rows disagree."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tiny_sites import TINY, initial, make_site, rows_of

from models.errors import Missing
from models.images import content_hash, encode_png
from models.task import Rows
from pipelines.federated.choosing import STRATEGIES
from pipelines.federated.doubts import doubts
from pipelines.federated.engines.local import LocalEngine
from pipelines.federated.site import OracleAnnotator, Site
from pipelines.federated.store import SPACES_KEPT, SiteStore
from pipelines.label import label, share_out
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
        assert table["weight"][~bought].between(0.5 * 0.6, 0.5).all(), "as sure as it must be, and no more than allowed"
        right += int((table["label"].to_numpy()[~bought] == truth[~bought]).sum())
        spread += int((~bought).sum())
    assert done.accuracy == pytest.approx(right / spread)
    assert done.accuracy > 0.95, "three plain patterns"


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("share", [0.01, 0.13, 1.0])
def test_the_budget_is_bought_exactly_whatever_the_strategy(fleet: Fleet, strategy: str, share: float) -> None:
    done = label(fleet.engine, fleet.snapshots, ROWS, chosen(budget_share=share, strategy=strategy), 3, initial())
    assert done.bought == done.newly_bought == fleet.oracle.revealed == fleet.paid() == max(1, int(share * ROWS))
    for site in fleet.engine.sites.values():
        own = site.store.rows(fleet.snapshots[site.name], "train")["row_id"]
        assert set(site.store.annotations()) <= set(own)


@given(share=st.floats(0.01, 1.0), per_cluster=st.integers(1, 4), seed=st.integers(0, 99))
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_never_more_or_less_than_the_budget_is_bought(
    tmp_path_factory: pytest.TempPathFactory, share: float, per_cluster: int, seed: int
) -> None:
    fleet = Fleet(tmp_path_factory.mktemp("fleet"))
    done = label(fleet.engine, fleet.snapshots, ROWS, chosen(budget_share=share, per_cluster=per_cluster), seed)
    assert done.bought == fleet.oracle.revealed == fleet.paid() == max(1, int(share * ROWS))


def test_without_a_model_the_first_rows_are_chosen_as_by_the_default(fleet: Fleet, tmp_path: Path) -> None:
    by_margin = label(fleet.engine, fleet.snapshots, ROWS, chosen(strategy="margin"), 0)
    other = Fleet(tmp_path / "other")
    by_default = label(other.engine, other.snapshots, ROWS, chosen(), 0)
    assert by_margin.bought == by_default.bought
    for name, site in fleet.engine.sites.items():
        assert site.store.annotations() == other.engine.sites[name].store.annotations()


def test_drifted_rows_are_bought_before_those_that_look_like_the_known_ones(fleet: Fleet) -> None:
    from pipelines.ingest import ingest

    new, inverted = {}, {}
    for number, (name, site) in enumerate(fleet.engine.sites.items()):
        fresh = rows_of(20, 900 + number)
        strange = [np.uint8(255) - np.asarray(image) for image in rows_of(10, 950 + number).images]
        source = Rows([*fresh.images, *strange], [*fresh.labels, *(0 for _ in strange)])
        snapshots = ingest(site.store, TINY, source, "train", "new").snapshots
        new[name] = tuple(snapshot for snapshot in snapshots if snapshot not in fleet.snapshots[name])
        inverted[name] = {content_hash(encode_png(image)) for image in strange}
    done = label(fleet.engine, new, 90, chosen(budget_share=0.2, strategy="drifted"), 0, None, fleet.snapshots)
    bought = {row for site in fleet.engine.sites.values() for row in site.store.annotations()}
    assert done.bought == len(bought) == 18
    assert len(bought & set.union(*inverted.values())) >= 16, "of 30 strange rows among 90"


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


class Contrary(OracleAnnotator):
    """Says whatever comes next, of every row."""

    def label(self, store: SiteStore, row_ids: Sequence[str]) -> dict[str, int]:
        return {row: i % 3 for i, row in enumerate(sorted(super().label(store, row_ids)))}


def test_where_bought_rows_disagree_nothing_spreads(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, Contrary())
    done = label(fleet.engine, fleet.snapshots, ROWS, chosen(per_cluster=10, spread="cluster"), 0)
    assert done.bought > 20
    assert done.agreeing == 0.0
    assert done.spread == 0
    for site in fleet.engine.sites.values():
        assert set(site.store.labels(done.id)["how"]) <= {"bought"}


def test_spreading_switches_itself_off_at_the_sites_where_held_out_labels_come_out_wrong(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, Contrary())
    done = label(fleet.engine, fleet.snapshots, ROWS, chosen(budget_share=0.4, per_cluster=1, spread_confidence=0.0), 0)
    assert done.sites_off == len(SIZES)
    assert done.spread == 0
    for site in fleet.engine.sites.values():
        assert set(site.store.labels(done.id)["how"]) == {"bought"}
    trusting = chosen(budget_share=0.4, per_cluster=1, spread_confidence=0.0, spread_check=0.0)
    careless = label(fleet.engine, fleet.snapshots, ROWS, trusting, 0)
    assert careless.sites_off == 0
    assert careless.spread > 0
    assert careless.accuracy < 0.7, "and there was reason to"


def test_suspects_stay_at_the_site_where_they_can_be_asked_again(tmp_path: Path) -> None:
    class Slipping(OracleAnnotator):
        def label(self, store: SiteStore, row_ids: Sequence[str]) -> dict[str, int]:
            told = super().label(store, row_ids)
            self.wrong = {row for i, row in enumerate(sorted(told)) if i % 9 == 0}
            everything.update(self.wrong)
            return {row: (value + 1) % 3 if row in self.wrong else value for row, value in told.items()}

    everything: set[str] = set()
    fleet = Fleet(tmp_path, Slipping())
    done = label(fleet.engine, fleet.snapshots, ROWS, chosen(budget_share=0.6, per_cluster=1), 0)
    found = {each.row_id for site in fleet.engine.sites.values() for each in doubts(site.store)}
    assert done.suspects == len(found)
    assert len(found & everything) > 0.6 * len(everything), "three plain patterns"
    assert len(found - everything) < 0.1 * done.bought
    right = 0
    for site in fleet.engine.sites.values():
        paid = site.store.annotations()
        listed = {each.row_id: each for each in doubts(site.store)}
        assert all(paid[row] == each.label != each.suggestion for row, each in listed.items())
        truth = site.store.truth(everything & set(listed))
        right += sum(listed[row].suggestion == label for row, label in truth.items())
    assert right > 0.8 * len(found & everything), "and what is suggested instead is right"


def test_a_site_that_lost_its_embedded_rows_says_what_to_do(fleet: Fleet) -> None:
    done = label(fleet.engine, fleet.snapshots, ROWS, chosen(), 0)
    site = fleet.engine.sites["a"]
    for path in (site.store.root / "spaces").iterdir():
        path.unlink()
    with pytest.raises(Missing, match="run the labelling step again"):
        site.store.space(done.summary.space)


def test_a_site_keeps_the_embedded_rows_of_the_last_labellings_only(tmp_path: Path) -> None:
    store = SiteStore(tmp_path / "a")
    for number in range(SPACES_KEPT + 2):
        store.write_space(f"space-{number}", ["r"], np.full((1, 2), number, dtype=np.float32))
    assert len(list((store.root / "spaces").iterdir())) == SPACES_KEPT
    row_ids, features = store.space(f"space-{SPACES_KEPT + 1}")
    assert (row_ids, features.tolist()) == (["r"], [[SPACES_KEPT + 1.0] * 2])


def test_no_weight_no_spread(fleet: Fleet) -> None:
    assert label(fleet.engine, fleet.snapshots, ROWS, chosen(spread_weight=0.0), 0).spread == 0


def test_a_label_speaks_for_its_cluster_at_sites_that_bought_none(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    done = label(fleet.engine, fleet.snapshots, ROWS, chosen(budget_share=0.02, per_cluster=1), 0)
    assert done.bought == 3
    for site in fleet.engine.sites.values():
        assert set(site.store.labels(done.id)["label"]) == {0, 1, 2}


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
    # Given who is closest, it is the same budget, and who has the closest row is asked first.
    rng = np.random.default_rng(seed)
    closest = {site: rng.random(len(own)).astype(np.float32) for site, own in stock.items()}
    nearer = share_out(stock, budget, per_cluster, seed, closest)
    assert np.array_equal(sum(nearer.values()), total)
    for cluster in np.flatnonzero(total):
        first = min((site for site in stock if stock[site][cluster]), key=lambda site: closest[site][cluster])
        assert nearer[first][cluster] >= 1
        assert all(0 <= nearer[site][cluster] <= stock[site][cluster] for site in stock)
