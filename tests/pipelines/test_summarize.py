"""The data summary: made of sums, yet exactly k-means on the pooled rows."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import normalized_mutual_info_score
from tiny_sites import TINY, make_engine

from benchmarks.weighed import Weighed
from models.embedding import nearest_centroid, normalised_pixels
from models.errors import BadInput
from models.images import Images
from pipelines.federated.engines.local import LocalEngine
from pipelines.federated.jobs import MINIMUM_ROWS
from pipelines.federated.site import Site
from pipelines.federated.store import stack_images
from pipelines.summarize import DIRECTIONS, SITE_BYTES, Snapshots, clusters_of_a_site, summarize

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
    start = summarize(engine, snapshots, 3, 0, seed=1).centroids.astype(np.float64)
    found = summarize(engine, snapshots, 3, rounds, seed=1)
    pooled = np.concatenate(list(features.values()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        expected = KMeans(3, init=start, n_init=1, max_iter=rounds, tol=0.0, algorithm="lloyd").fit(pooled)
    # Every site has two rows or more of each cluster, so that nothing is left untold.
    assert min(counts.min() for counts in found.counts.values()) >= MINIMUM_ROWS
    assert np.allclose(found.centroids, expected.cluster_centers_, atol=5e-4), "but for the digits lost on the way"
    assert np.array_equal(sum(found.counts.values()), np.bincount(expected.labels_, minlength=3))
    inertia = sum(found.counts.values()) @ found.radius.astype(np.float64) ** 2
    assert inertia == pytest.approx(expected.inertia_, rel=0.01)


def test_one_shot_finds_clusters_that_lie_apart_as_pooled_k_means_does(fleet) -> None:  # type: ignore[no-untyped-def]
    engine, snapshots, features = fleet
    pooled = np.concatenate(list(features.values()))
    central = KMeans(3, n_init=4, random_state=0).fit(pooled)
    nearest, _ = nearest_centroid(pooled.astype(np.float32), summarize(engine, snapshots, 3, 0, seed=1).centroids)
    assert normalized_mutual_info_score(central.labels_, nearest) == pytest.approx(1.0)


def test_projected_clusters_are_those_of_the_whole_rows_and_every_centroid_is_a_few_numbers(fleet) -> None:  # type: ignore[no-untyped-def]
    engine, snapshots, features = fleet
    found = summarize(engine, snapshots, 3, 2, seed=1, directions=2)
    assert found.basis is not None
    assert found.centroids.shape == (3, 2)
    assert np.allclose(found.basis.T.astype(np.float64) @ found.basis, np.eye(2), atol=2e-3), "orthonormal"
    pooled = np.concatenate(list(features.values())).astype(np.float32)
    nearest, _ = nearest_centroid(pooled @ found.basis.astype(np.float32), found.centroids)
    whole, _ = nearest_centroid(pooled, summarize(engine, snapshots, 3, 2, seed=1).centroids)
    assert normalized_mutual_info_score(whole, nearest) == pytest.approx(1.0)


def test_two_summaries_can_share_one_space(fleet) -> None:  # type: ignore[no-untyped-def]
    engine, snapshots, _ = fleet
    first = summarize(engine, snapshots, 3, 1, seed=1, directions=2)
    part = {"a": snapshots["a"]}
    second = summarize(engine, part, 3, 1, seed=1, directions=2, basis=first.basis)
    assert np.array_equal(first.basis, second.basis)
    distance = np.linalg.norm(first.centroids[:, None].astype(float) - second.centroids[None].astype(float), axis=2)
    assert distance.min(axis=1).max() < 0.2


def test_rows_that_are_alone_at_their_site_move_no_centroid_and_are_counted(fleet) -> None:  # type: ignore[no-untyped-def]
    engine, snapshots, features = fleet
    found = summarize(engine, snapshots, 40, 1, seed=1)
    start = summarize(engine, snapshots, 40, 0, seed=1).centroids.astype(np.float64)
    sums, counts = np.zeros_like(start), np.zeros(len(start))
    alone = 0
    for own in features.values():
        nearest, _ = nearest_centroid(own.astype(np.float32), start)
        for cluster in range(len(start)):
            members = own[nearest == cluster]
            alone += len(members) == 1
            if len(members) >= MINIMUM_ROWS:
                sums[cluster] += members.sum(axis=0)
                counts[cluster] += len(members)
    assert alone, "the example shows nothing"
    told = counts > 0
    assert np.allclose(found.centroids[told], sums[told] / counts[told, None], atol=1e-3)
    assert np.array_equal(found.centroids[~told], start[~told])
    assert sum(int(c.sum()) for c in found.counts.values()) == sum(SIZES.values())


def test_a_summary_is_the_same_again_and_does_not_depend_on_the_order_of_the_sites(fleet) -> None:  # type: ignore[no-untyped-def]
    engine, snapshots, _ = fleet
    one = summarize(engine, snapshots, 8, 2, seed=3)
    other = summarize(engine, dict(reversed(snapshots.items())), 8, 2, seed=3)
    assert one.id == other.id
    assert np.array_equal(one.centroids, other.centroids)
    assert one.id != summarize(engine, snapshots, 8, 2, seed=4).id


def test_counts_closest_and_radius_are_those_of_the_rows(fleet) -> None:  # type: ignore[no-untyped-def]
    engine, snapshots, features = fleet
    found = summarize(engine, snapshots, 8, 2, seed=3)
    squares, told = np.zeros(8), np.zeros(8)
    for site, own in features.items():
        nearest, distance = nearest_centroid(own.astype(np.float32), found.centroids)
        assert np.array_equal(found.counts[site], np.bincount(nearest, minlength=8))
        for cluster in range(8):
            members = np.sort(distance[nearest == cluster])
            if len(members) < MINIMUM_ROWS:
                assert np.isinf(found.closest[site][cluster]), "of one row its distance is not told"
                continue
            assert found.closest[site][cluster] == pytest.approx(members[:MINIMUM_ROWS].mean(), abs=1e-5)
            squares[cluster] += (members**2).sum()
            told[cluster] += len(members)
    assert np.allclose(found.radius, np.sqrt(squares / np.maximum(told, 1)), atol=1e-5)


@given(clusters=st.integers(1, 500), sites=st.integers(1, 200))
def test_a_site_sends_no_more_clusters_than_asked_for_and_all_together_enough(clusters: int, sites: int) -> None:
    local = clusters_of_a_site(clusters, sites)
    assert 1 <= local <= clusters
    assert local * sites >= clusters
    assert local <= max(8, 3 * clusters / sites + 1)


def test_there_are_never_more_clusters_than_rows_can_fill(tmp_path: Path) -> None:
    engine, snapshots = make_engine(tmp_path, {"a": 7, "b": 5})
    found = summarize(engine, snapshots, 100, 1, seed=0)
    assert 1 <= len(found.centroids) <= 12 // MINIMUM_ROWS
    assert sum(int(c.sum()) for c in found.counts.values()) == 12


def test_too_few_rows_for_any_cluster_are_a_sentence(tmp_path: Path) -> None:
    engine, snapshots = make_engine(tmp_path, {"a": 1, "b": 1})
    with pytest.raises(BadInput, match="no site has the 2 rows that clusters need"):
        summarize(engine, snapshots, 2, 1, seed=0)


@pytest.mark.parametrize("tiles", [1, 12])
@pytest.mark.parametrize(("clusters", "bins"), [(20, 0), (60, 256), (300, 0), (800, 0)])
def test_what_a_site_sends_and_gets_stays_within_its_bound_whatever_is_asked_for(
    tmp_path: Path, clusters: int, bins: int, tiles: int
) -> None:
    from dataclasses import replace

    def wide(images: Images) -> NDArray[np.float32]:
        return np.tile(normalised_pixels(images), (1, tiles)) / np.float32(np.sqrt(tiles))

    engine, snapshots = make_engine(tmp_path, {f"s{i}": 800 for i in range(3)})
    task = replace(TINY, embed=wide)
    counting = Weighed(LocalEngine({name: Site(task, site.store) for name, site in engine.sites.items()}))
    found = summarize(counting, snapshots, clusters, 3, seed=0, bins=bins, directions=0 if bins else DIRECTIONS)
    assert max(counting.bytes.values()) < SITE_BYTES, counting.bytes
    assert found.basis is None or found.basis.shape == (768, 32)
    assert len(found.centroids) >= min(clusters, 30 if bins else 300), "and not by giving up"
    assert len(found.starts) == len(found.start_rows) == len(found.projected)
    assert found.start_rows.sum() >= 0.9 * 2400
