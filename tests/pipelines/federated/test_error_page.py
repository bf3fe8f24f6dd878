"""The page is one file that loads nothing, escapes what it is told, and comes back from its data as it was."""

from __future__ import annotations

import re

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipelines.federated.causes import CAUSES
from pipelines.federated.error_page import (
    Neighbour,
    Page,
    Shift,
    ShownError,
    class_table,
    dump_errors,
    load_errors,
    measured_rates,
    picture,
    render,
)

PIXELS = picture(np.arange(64, dtype=np.uint8).reshape(8, 8, 1))
NASTY = "<script>alert('x')</script>\"&"


def error(name: str = "seven") -> ShownError:
    return ShownError(
        "site-1", "evaluation", name, "one", 0.9, "unseen", f"because of {name}", PIXELS, PIXELS, PIXELS,
        (Neighbour(PIXELS, name),), (Shift(name, -0.5, 1.25),),
    )  # fmt: skip


def page(*errors: ShownError, name: str = "seven") -> Page:
    counts = np.zeros((len(CAUSES), 2), dtype=np.int64)
    counts[0] = [len(errors), 0]
    causes = dict(zip(CAUSES, counts.sum(axis=1).tolist(), strict=True))
    shifts = (Shift(name, 2.0), Shift("other", 1.0))
    return Page("errors", 10, causes, (class_table(counts, (name, "one")),), (f"a note on {name}",), errors, shifts)


def test_the_page_loads_nothing_from_anywhere() -> None:
    html = render(page(error()))
    assert set(re.findall(r"(?:src|href)=\"([^\"]{0,21})", html)) == {"data:image/png;base64"}
    assert not re.search(r"https?://|@import|url\(|<script|<link|<iframe", html)
    assert "default-src 'none'" in html


@given(st.sampled_from([NASTY, "{{ 7 * 7 }}", "a < b", "é„“"]))
def test_names_are_text_and_never_markup(name: str) -> None:
    html = render(page(error(name), name=name))
    assert "<script" not in html
    assert "49" not in re.sub(r"base64,[^\"]*", "", html)
    assert html.count("<table") == html.count("</table>")


def test_a_page_without_errors_says_so_and_shows_none() -> None:
    html = render(page())
    assert "0 of 10" in html
    assert "Error by error" not in html


def test_errors_come_back_from_their_data_as_they_were() -> None:
    errors = (error(), error(NASTY))
    assert load_errors(dump_errors(errors)) == errors


def test_the_measured_rate_counts_p_values_up_to_the_stated_one() -> None:
    bins = np.zeros((2, 20), dtype=np.int64)
    bins[0, [0, 19]], bins[1, [0, 1, 19]] = [5, 95], [10, 10, 80]
    assert measured_rates(bins, 0.05) == (0.05, 0.10)
    assert measured_rates(bins, 0.10) == (0.05, 0.20)
    assert measured_rates(np.zeros_like(bins), 0.05) == (0.0, 0.0)
