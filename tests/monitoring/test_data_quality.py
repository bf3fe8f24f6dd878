from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from models.quality import QUALITY_COLUMNS
from monitoring.data_quality import check, told_of
from monitoring.findings import Finding, MonitorPolicy
from monitoring.habit import Habit, Past, SiteTold

POLICY = MonitorPolicy()
SITES = ("site-1", "site-2")


def values(rows: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.uniform(0.2, 0.4, rows) for name in QUALITY_COLUMNS}


def traffic(rows: int = 60, seed: int = 1) -> pd.DataFrame:
    """Of both sites in turn, a row a second, no picture twice."""
    site = [SITES[i % 2] for i in range(rows)]
    return pd.DataFrame(
        {"site": site, "image_hash": [f"{seed}-{i}" for i in range(rows)], "at": 1000.0 + np.arange(rows)}
        | values(rows, seed)
    )


REFERENCE = {site: pd.DataFrame(values(300, seed)) for seed, site in enumerate(SITES)}


def found(rows: pd.DataFrame, readable: np.ndarray | None = None, habit: Habit | None = None) -> dict[str, list[str]]:
    """monitor → the scopes that it calls odd."""
    there = np.ones(len(rows), dtype=bool) if readable is None else readable
    findings, _ = check(rows, there, REFERENCE, habit or Habit([]), POLICY)
    odd: dict[str, list[str]] = {}
    for finding in findings:
        if finding.odd:
            odd.setdefault(finding.monitor, []).append(finding.scope)
    return odd


@pytest.mark.parametrize("seed", range(20))
def test_traffic_like_the_reference_is_fine(seed: int) -> None:
    assert found(traffic(seed=seed + 10)) == {}


def test_pictures_that_cannot_be_read_are_counted_where_they_are() -> None:
    rows = traffic()
    readable = ~((rows["site"] == "site-2") & (rows.index < 30)).to_numpy()
    assert found(rows, readable) == {"unreadable": ["overall", "site-2"]}
    rows.loc[rows["site"] == "site-1", "noise"] = np.nan
    assert found(rows)["unreadable"] == ["overall", "site-1"]
    assert "out of range" not in found(rows)


def test_values_beyond_the_range_of_the_sites_own_reference_are_odd() -> None:
    rows = traffic()
    rows.loc[rows["site"] == "site-1", "brightness"] = 0.01
    assert found(rows) == {"out of range": ["overall", "site-1"]}
    rows.loc[rows["site"] == "site-1", "brightness"] = 0.199  # within the margin
    assert found(rows) == {}


def test_a_camera_that_hangs_sends_the_same_picture() -> None:
    rows = traffic()
    rows.loc[rows["site"] == "site-1", "image_hash"] = "the same"
    assert found(rows) == {"duplicates": ["overall", "site-1"]}


def test_the_same_picture_at_two_sites_is_no_duplicate() -> None:
    rows = traffic()
    rows["image_hash"] = [f"{i // 2}" for i in range(len(rows))]
    assert found(rows) == {}


def test_what_the_windows_before_sent_twice_is_usual() -> None:
    rows = traffic()
    rows.loc[rows["site"] == "site-1", "image_hash"] = [f"{i // 2}" for i in range(30)]
    assert found(rows) == {"duplicates": ["overall", "site-1"]}
    told = {site: SiteTold(30, 0.0, 900.0, 1.0, 15 if site == "site-1" else 0) for site in SITES}
    assert found(rows, habit=Habit([Past(900.0, told)] * 3)) == {}


def test_a_site_without_a_reference_is_passed_over_and_still_remembered() -> None:
    rows = traffic()
    rows["site"] = "stranger"
    findings, told = check(rows, np.zeros(len(rows), dtype=bool), REFERENCE, Habit([]), POLICY)
    assert [finding for finding in findings if finding.odd] == []
    assert told["stranger"].rows == 60


def test_a_window_tells_of_each_site_what_later_ones_need() -> None:
    rows = traffic()
    rows.loc[rows.index[10:], "at"] += 500.0
    _, told = check(rows, np.ones(60, dtype=bool), REFERENCE, Habit([]), POLICY)
    assert told["site-1"] == SiteTold(30, 1000.0, 1558.0, 502.0, 0)
    before = Habit([Past(1.0, {"site-1": SiteTold(5, 0.0, 1.0, 0.5, 0)})])
    assert check(rows, np.ones(60, dtype=bool), REFERENCE, before, POLICY)[1]["site-1"].longest_gap_s == 999.0


def test_the_row_of_a_window_keeps_what_is_odd_and_everything_overall() -> None:
    def finding(scope: str, odd: bool) -> Finding:
        return Finding("duplicates", scope, 0.0, 0.0, odd, "")

    kept = told_of([finding("overall", False), finding("site-1", False), finding("site-2", True)])
    assert [each.scope for each in kept] == ["overall", "site-2"]
