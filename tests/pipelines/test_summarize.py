"""The data summary: made of sums, yet exactly k-means on the pooled rows."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from tiny_sites import TINY, make_engine

from models.embedding import nearest_centroid, normalised_pixels
from models.errors import BadInput
from pipelines.federated.engines.local import LocalEngine
from pipelines.federated.jobs import MINIMUM_ROWS
from pipelines.federated.site import DISTANCE_RANGE, Site
from pipelines.federated.store import SiteStore, stack_images
from pipelines.summarize import DataSummary, Snapshots, summarize

SIZES = {"a": 60, "b": 90, "c": 45}


def features_of(engine: LocalEngine, snapshots: Snapshots) -> dict[str, NDArray[np.float64]]:
    found = {}
    for name, ids in snapshots.items():
        table = engine.sites[name].store.rows(ids, "train")
        found[name] = normalised_pixels(stack_images(table["png"], TINY.input)).astype(np.float64)
    return found


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    engine, snapshots = make_engine(tmp_path_factory.mktemp("fleet"), SIZES)
    return engine, snapshots, features_of(engine, snapshots)


@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_federated_lloyd_iterations_are_k_means_on_the_pooled_rows(fleet, rounds: int) -> None:  # type: ignore[no-untyped-def]
    engine, snapshots, features = fleet
    start = summarize(engine, snapshots, 3, 0, seed=1).centroids
    found = summarize(engine, snapshots, 3, rounds, seed=1)
    pooled = np.concatenate(list(features.values()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        expected = KMeans(3, init=start, n_init=1, max_iter=rounds, tol=0.0, algorithm="lloyd").fit(pooled)
    # Every site has two rows or more of each cluster, so that nothing is left untold.
    assert min(counts.min() for counts in found.counts.values()) >= MINIMUM_ROWS
    assert np.allclose(found.centroids, expected.cluster_centers_, atol=1e-9)
    assert np.array_equal(sum(found.counts.values()), np.bincount(expected.labels_, minlength=3))


def test_rows_that_are_alone_at_their_site_move_no_centroid_and_are_counted(fleet) -> None:  # type: ignore[no-untyped-def]
    engine, snapshots, features = fleet
    found = summarize(engine, snapshots, 25, 1, seed=1)
    start = summarize(engine, snapshots, 25, 0, seed=1).centroids
    sums, counts = np.zeros_like(start), np.zeros(25)
    alone = 0
    for own in features.values():
        nearest, _ = nearest_centroid(own.astype(np.float32), start)
        for cluster in range(25):
            members = own[nearest == cluster]
            alone += len(members) == 1
            if len(members) >= MINIMUM_ROWS:
                sums[cluster] += members.sum(axis=0)
                counts[cluster] += len(members)
    assert alone, "the example shows nothing"
    told = counts > 0
    assert np.allclose(found.centroids[told], sums[told] / counts[told, None], atol=1e-9)
    assert np.allclose(found.centroids[~told], start[~told])
    assert sum(int(c.sum()) for c in found.counts.values()) == sum(SIZES.values())


def test_a_summary_is_the_same_again_and_does_not_depend_on_the_order_of_the_sites(fleet) -> None:  # type: ignore[no-untyped-def]
    engine, snapshots, _ = fleet
    one = summarize(engine, snapshots, 8, 2, seed=3)
    other = summarize(engine, dict(reversed(snapshots.items())), 8, 2, seed=3)
    assert one.id == other.id
    assert np.array_equal(one.centroids, other.centroids)
    assert one.id != summarize(engine, snapshots, 8, 2, seed=4).id


def test_counts_and_histograms_hold_every_row_of_every_site(fleet) -> None:  # type: ignore[no-untyped-def]
    engine, snapshots, features = fleet
    found = summarize(engine, snapshots, 8, 2, seed=3)
    for site, own in features.items():
        assert found.counts[site].sum() == len(own)
        assert np.array_equal(found.distances[site].sum(axis=1), found.counts[site])


@pytest.mark.parametrize("share", [0.1, 0.5, 0.75, 1.0])
def test_radius_and_within_agree_with_the_rows_themselves(fleet, share: float) -> None:  # type: ignore[no-untyped-def]
    engine, snapshots, features = fleet
    found = summarize(engine, snapshots, 8, 2, seed=3)
    radius = found.radius(share)
    within = found.within(radius)
    total = np.zeros(8)
    for site, own in features.items():
        nearest, distance = nearest_centroid(own.astype(np.float32), found.centroids)
        counted = np.bincount(nearest[distance <= radius[nearest]], minlength=8)
        assert np.array_equal(within[site], counted)
        total += counted
    everything = sum(found.counts.values())
    assert (total >= share * everything - 1e-9).all()
    bin_width = DISTANCE_RANGE / next(iter(found.distances.values())).shape[1]
    smaller = sum(found.within(radius - bin_width).values())
    assert (smaller < share * everything).all(), "a smaller radius would do"


def test_a_cluster_without_rows_has_a_radius_and_nothing_within() -> None:
    histogram = np.zeros((2, 64), dtype=np.int64)
    histogram[0, 10] = 4
    empty = DataSummary(np.eye(2), {"a": histogram.sum(axis=1)}, {"a": histogram})
    assert empty.within(empty.radius(0.5))["a"].tolist() == [4, 0]


def test_there_are_never_more_clusters_than_rows_can_fill(tmp_path: Path) -> None:
    engine, snapshots = make_engine(tmp_path, {"a": 7, "b": 5})
    found = summarize(engine, snapshots, 100, 1, seed=0)
    assert 1 <= len(found.centroids) <= 12 // MINIMUM_ROWS
    assert sum(int(c.sum()) for c in found.counts.values()) == 12


def test_too_few_rows_for_any_cluster_are_a_sentence(tmp_path: Path) -> None:
    engine, snapshots = make_engine(tmp_path, {"a": 1, "b": 1})
    with pytest.raises(BadInput, match="no site has the 2 rows that clusters need"):
        summarize(engine, snapshots, 2, 1, seed=0)


def test_an_embedding_that_the_histograms_cannot_hold_is_a_sentence(fleet, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    from dataclasses import replace

    engine, snapshots, _ = fleet
    raw = replace(TINY, embed=lambda images: images.reshape(len(images), -1).astype(np.float32))
    stores = {name: SiteStore(site.store.root) for name, site in engine.sites.items()}
    with pytest.raises(
        BadInput, match=r"embed gives features of length .*; .*scale every image's features to length 1"
    ):
        summarize(LocalEngine({name: Site(raw, store) for name, store in stores.items()}), snapshots, 3, 1, seed=0)
