from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance

from models.binning import count, hide_rare
from monitoring.drift import COLUMNS, NUMERIC, OVERALL, DriftPolicy
from monitoring.histograms import Bins, Histograms, choose_bins, compare, distance, fine_bins

CLASSES = ("no", "mild", "severe")
POLICY = DriftPolicy(replicates=200)
Table = Mapping[str, np.ndarray]


def rows(rng: np.random.Generator, count_: int, shift: float = 0.0, dark: float = 0.0) -> Table:
    """Like quality columns: right of 0, of different scale and skew; shift: of every column, in standard deviations."""
    table = {
        name: np.abs(rng.gamma(6.0 + place, 0.03, count_) * (1.0 - dark) + shift * 0.08)
        for place, name in enumerate(NUMERIC)
    }
    table["saturation"] = np.zeros(count_)  # greyscale pictures
    table["confidence"] = rng.beta(20, 1, count_)
    table["prediction"] = rng.choice(3, count_, p=[0.6, 0.3, 0.1]).astype(float)
    return table


def counted(table: Table, bins: Mapping[str, tuple[float, ...]], smallest: int = 1) -> Histograms:
    return {c: hide_rare(count(table[c], bins[c]), smallest, c != "prediction") for c in COLUMNS}


def summed(parts: list[Histograms]) -> Histograms:
    return {column: np.sum([part[column] for part in parts], axis=0) for column in COLUMNS}


def fleet(rng: np.random.Generator, sites: int, each: int, smallest: int = 1) -> tuple[Bins, dict[str, Histograms]]:
    """Bins and references of sites, as the monitor gets them."""
    tables = {f"site-{number}": rows(rng, each) for number in range(sites)}
    bins = choose_bins(summed([counted(table, fine_bins(3), smallest) for table in tables.values()]), 3)
    return bins, {site: counted(table, bins.edges, smallest) for site, table in tables.items()}


@given(st.integers(0, 10**6), st.lists(st.integers(1, 120), min_size=1, max_size=6), st.floats(0, 2))
@examples(max_examples=15, deadline=None)
def test_drift_from_federated_histograms_is_the_drift_of_the_pooled_rows_histogram(
    seed: int, sizes: list[int], shift: float
) -> None:
    rng = np.random.default_rng(seed)
    bins, reference = fleet(rng, len(sizes), 300)
    tables = [rows(rng, size, shift) for size in sizes]
    now = {f"site-{number}": counted(table, bins.edges) for number, table in enumerate(tables)}
    (federated, *_) = compare(now, reference, bins, POLICY, 1, CLASSES)
    pooled = counted({c: np.concatenate([table[c] for table in tables]) for c in COLUMNS}, bins.edges)
    shares = np.array(sizes) / sum(sizes)
    for column in federated.columns:
        name = column.column
        was = np.sum(
            [share * own[name] / own[name].sum() for share, own in zip(shares, reference.values(), strict=True)], axis=0
        )
        whole = pooled[name] / pooled[name].sum()
        assert column.value == pytest.approx(float(distance(name, whole, was, bins)), abs=1e-9)
    assert federated.rows == sum(sizes)


def test_the_distance_of_binned_values_is_near_that_of_the_values() -> None:
    rng = np.random.default_rng(0)
    one, other = rows(rng, 4000), rows(rng, 4000, shift=0.7)
    bins = choose_bins(counted(one, fine_bins(3)), 3)
    was, now = counted(one, bins.edges), counted(other, bins.edges)
    for name in ("brightness", "noise", "embedding_distance"):
        true = wasserstein_distance(one[name], other[name]) / np.std(one[name])
        assert float(distance(name, now[name] / 4000, was[name] / 4000, bins)) == pytest.approx(true, rel=0.15)


@pytest.mark.parametrize(("each", "smallest"), [(40, 5), (150, 1)])
def test_sites_like_their_reference_are_odd_no_more_often_than_promised(each: int, smallest: int) -> None:
    """Rare bins that were merged away are no drift: the thresholds have seen the same merging."""
    odd, trials = 0, 20
    loud = POLICY.model_copy(
        update={"replicates": 100, "false_alarm_per_window": 0.1, "safety": 1.0, "minimum_effect": 1e-9}
    )
    loud = loud.model_copy(update={"embedding_effect": 1e-9, "confidence_effect": 1e-9})
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        bins, reference = fleet(rng, 4, 300, smallest)
        now = {site: counted(rows(rng, each), bins.edges, smallest) for site in reference}
        odd += any(scope.odd for scope in compare(now, reference, bins, loud, smallest, CLASSES, seed))
    assert odd / trials <= 0.1 + 2 * (0.1 * 0.9 / trials) ** 0.5


def test_darkness_at_one_site_is_found_there_and_told_in_words() -> None:
    rng = np.random.default_rng(0)
    bins, reference = fleet(rng, 4, 300, 5)
    now = {s: counted(rows(rng, 80, dark=0.7 if s == "site-2" else 0.0), bins.edges, 5) for s in reference}
    found = {scope.scope: scope for scope in compare(now, reference, bins, POLICY, 5, CLASSES)}
    assert [name for name, scope in found.items() if scope.odd and name != OVERALL] == ["site-2"]
    brightness = next(column for column in found["site-2"].columns if column.column == "brightness")
    assert (brightness.was, brightness.now) == (pytest.approx(0.18, abs=0.02), pytest.approx(0.055, abs=0.03))


def test_a_shift_of_the_answers_alone_is_found() -> None:
    rng = np.random.default_rng(0)
    bins, reference = fleet(rng, 2, 400)
    tables = [dict(rows(rng, 200)) for _ in reference]
    for table in tables:
        table["prediction"] = np.ones(200)
    now = {site: counted(table, bins.edges) for site, table in zip(reference, tables, strict=True)}
    overall = compare(now, reference, bins, POLICY, 1, CLASSES)[0]
    worst = max(overall.columns, key=lambda column: column.ratio)
    assert (worst.column, worst.what, worst.now) == ("prediction", "the share of predictions of mild", 1.0)


def test_sites_without_rows_or_reference_are_left_out_and_small_ones_not_judged_alone() -> None:
    rng = np.random.default_rng(0)
    bins, reference = fleet(rng, 3, 300)
    nothing = {column: np.zeros_like(own) for column, own in reference["site-0"].items()}
    now = {
        "site-0": nothing,
        "site-1": counted(rows(rng, 10), bins.edges),
        "stranger": counted(rows(rng, 90), bins.edges),
    }
    assert [(scope.scope, scope.rows) for scope in compare(now, reference, bins, POLICY, 1, CLASSES)] == [(OVERALL, 10)]
    assert compare({"site-0": nothing}, reference, bins, POLICY, 1, CLASSES) == []
