"""The recovery benchmark's worlds are what they say. Run in a process, as the other benchmarks' tests are."""

from __future__ import annotations

from test_speed_peers import run

WORLDS = """
import json
import numpy as np
from hypothesis import given, settings, strategies as st
from recovery import _compared, gained
from recovery_worlds import ELEC2, GAS, Light, as_images

rows = st.lists(st.floats(-1e6, 1e6), min_size=9, max_size=9)

@settings(max_examples=50, deadline=None)
@given(st.lists(rows, min_size=3, max_size=8))
def keeps_order(table):
    x = np.array(table)
    pixels = as_images(x, 2, ELEC2).reshape(len(x), 9).astype(int)
    for column in range(9):
        order = np.argsort(x[:, column], kind="stable")
        assert (np.diff(pixels[order, column]) >= 0).all()

keeps_order()
"""


def test_a_column_keeps_its_order_as_a_pixel_and_the_first_rows_middle_is_grey() -> None:
    shape = run(
        WORLDS
        + "x = np.ones((4, 128))\n"
        + "print(json.dumps([list(as_images(x, 4, GAS).shape), int(as_images(x, 4, GAS)[0, 0, 0, 0])]))"
    )
    assert shape == [[4, 8, 16, 1], 128]


def test_light_goes_out_at_once_or_by_steps_and_a_worse_version_is_told_from_noise() -> None:
    found = run(
        WORLDS
        + "abrupt = [Light('digits', 1, 'all').lost(n, 2) for n in range(4)]\n"
        + "gradual = [round(Light('digits', 4, 'all').lost(n, 2), 3) for n in range(7)]\n"
        + "old = np.arange(400) % 10 > 0\n"
        + "worse, same = old & (np.arange(400) % 7 > 0), np.roll(old, 1)\n"
        + "beyond = [g < -2 * e for g, e in (gained(worse, old), gained(same, old), gained(old, old))]\n"
        + "cell = {'accuracy': 0.9, 'labels': 100, 'retrainings': 8, 'false_promotions': 0}\n"
        + "cheap = cell | {'accuracy': 0.88, 'labels': 25, 'retrainings': 2}\n"
        + "held = [_compared({'every_window': cell, 'loop': own})['compared']['held'] for own in (\n"
        + "    cheap, cheap | {'labels': 26}, cheap | {'accuracy': 0.86}, cheap | {'false_promotions': 1})]\n"
        + "print(json.dumps([abrupt, gradual, beyond, held]))"
    )
    assert found == [
        [0.0, 0.0, 0.7, 0.7],
        [0.0, 0.0, 0.175, 0.35, 0.525, 0.7, 0.7],
        [True, False, False],
        [True, False, False, False],
    ]
