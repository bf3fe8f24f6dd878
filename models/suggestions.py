"""What a keyboard's query suggestions look like and who clicks on them: the world behind the keyboard task.

A fixed baseline model has proposed a suggestion; a row is that proposal as the baseline sees it (64 features), its
label is whether the user clicked. The kinds of features are those of Yang et al., "Applied federated learning:
improving Google keyboard query suggestions" (arXiv 1812.02903); every figure here is invented. The true chance of a
click is no logistic regression: users differ in their liking of suggestions, in their tastes and in how far they heed
the baseline's score, and some effects depend on one another.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from models.draws import Words, draw_seed, normals, seeds_of, words

Floats = NDArray[np.float32]
Numbers = NDArray[np.int64]

SIGNALS, FLAGS, TOPICS, HOURS, APPS, LANGUAGES = 16, 8, 12, 8, 8, 8
"""Columns by kind: numbers about the proposal (the first is the baseline's score), yes or no, and four one-hots (hours
are eighths of a day)."""

FLAG, TOPIC, HOUR, APP, LANGUAGE, PAST = (
    int(start) for start in np.cumsum([SIGNALS, FLAGS, TOPICS, HOURS, APPS, LANGUAGES])
)
"""The first column of each kind after the signals. Of the user's past there are four: how often clicked, interest in
this topic, how often shown, and time since the first."""

FEATURES = PAST + 4

USERS_PAST = (PAST, PAST + 2, PAST + 3)
"""The columns of it that are the same in all of a user's rows."""

BLOCK = 512
"""Users drawn at a time: their random words and rows stay in a processor's cache."""

_GRID = np.float32(64.0)
"""Features and weights are multiples of 1/64. Then float32 holds their sum of products exactly, so a label does not
depend on the order in which a matrix product takes it, nor on what else is in the block."""

_LIKING, _HEED, _TASTE, _NOISE = 0.9, 0.35, 0.6, 0.7
"""How far users differ (in log-odds), and how well their past tells it."""


@dataclass(frozen=True)
class Users:
    """Who holds the rows; every array has one entry (or row) a user."""

    liking: Floats
    heed: Floats
    tastes: Floats
    past: Floats
    interests: Floats
    topic: Numbers
    app: Numbers
    wakes: Numbers
    language: Numbers

    @classmethod
    def draw(cls, seeds: Words) -> Users:
        """Each user from its own seed."""
        drawn = words(seeds, 8, start=1).astype("<u8", copy=False)
        normal = _normal()[drawn[:, :7].view("<u2")]
        bytes_ = drawn[:, 7:].view(np.uint8)
        tastes, blurred = _TASTE * normal[:, 4 : 4 + TOPICS], _NOISE * normal[:, 4 + TOPICS : 4 + 2 * TOPICS]
        liking = _LIKING * normal[:, 0]
        past = np.stack([liking + _NOISE * normal[:, 2], normal[:, 3], (bytes_[:, 4] - _GRID) / _GRID], axis=1)
        return cls(
            liking=liking,
            heed=_HEED * normal[:, 1],
            tastes=tastes,
            past=_on_grid(past),
            interests=_on_grid(tastes + blurred),
            topic=_choice(TOPICS)[bytes_[:, 0]],
            app=_choice(APPS)[bytes_[:, 1]],
            wakes=bytes_[:, 2].astype(np.int64) % HOURS,
            language=_choice(LANGUAGES)[bytes_[:, 3]],
        )


@dataclass(frozen=True)
class Truth:
    """What makes a user click. weights [64] are linear; the tables stand for what no linear model can say."""

    weights: torch.Tensor
    intercept: np.float32
    slope: Floats
    together: Floats

    @classmethod
    @lru_cache(maxsize=64)  # asked for with every chunk of devices
    def on(cls, day: int, drift: float) -> Truth:
        """The truth of a day: the topics' appeal swings by `drift` log-odds over four weeks, each in its own phase."""
        chance = normals(seeds_of(draw_seed("keyboard", "truth"), np.arange(FEATURES)), HOURS)
        spread = np.repeat([0.12, 0.3, 0.4, 0.2, 0.3, 0.2, 0.0], [SIGNALS, FLAGS, TOPICS, HOURS, APPS, LANGUAGES, 4])
        weights = spread * chance[:, 0]
        weights[0] = 0.5
        weights[TOPIC:HOUR] += drift * np.sin(2 * np.pi * (day / 28 + np.arange(TOPICS) / TOPICS))
        weights[PAST:] = 0.0, 0.0, 0.1, -0.1
        return cls(
            weights=torch.from_numpy(_on_grid(weights)),
            intercept=np.float32(-2.1),
            slope=_on_grid(0.3 * chance[:TOPICS, 1]),
            together=_on_grid(0.4 * chance[:APPS, :HOURS]),
        )


def propose(users: Users, owner: Numbers, seeds: Words, truth: Truth, x: Floats, y: Numbers) -> Floats:
    """Fill x [rows, 64] (zeros before) and y [rows] with rows of these seeds; the log-odds of a click, [rows].

    owner: which of the users each row belongs to.
    """
    drawn = words(seeds, 4).astype("<u8", copy=False).view(np.uint8)
    np.multiply(drawn[:, :SIGNALS].view(np.int8), 1 / _GRID, out=x[:, :SIGNALS], dtype=np.float32)
    np.less(drawn[:, FLAG:TOPIC], _flag_limits(), out=x[:, FLAG:TOPIC])
    topic_byte, hour_byte, app_byte = drawn[:, 24], drawn[:, 25], drawn[:, 26]
    # One half of what a user sees is of the user's own topic and app.
    topic = np.where(topic_byte & 1, users.topic[owner], _choice(TOPICS)[topic_byte])
    app = np.where(app_byte & 1, users.app[owner], _choice(APPS)[app_byte])
    hour = (_choice(HOURS)[hour_byte] + users.wakes[owner]) % HOURS
    flat, row = x.reshape(-1), np.arange(0, x.size, FEATURES)
    for first, chosen in ((TOPIC, topic), (HOUR, hour), (APP, app), (LANGUAGE, users.language[owner])):
        flat[row + (first + chosen)] = 1.0
    tasted = owner * TOPICS + topic
    x[:, PAST] = users.past[owner, 0]
    x[:, PAST + 1] = users.interests.reshape(-1)[tasted]
    x[:, PAST + 2] = users.past[owner, 1]
    x[:, PAST + 3] = users.past[owner, 2]

    # The products with a user's own numbers are off the grid; they are taken entry by entry, which has one order.
    odds: Floats = torch.mv(torch.from_numpy(x), truth.weights).numpy()
    odds += truth.intercept + users.liking[owner]
    odds += users.tastes.reshape(-1)[tasted]
    odds += (users.heed[owner] + truth.slope[topic]) * x[:, 0]
    odds += truth.together[app, hour] * x[:, 1]
    y[:] = odds > _logistic()[drawn[:, 28:30].copy().view("<u2")[:, 0]]
    return odds


def _on_grid(values: NDArray[np.floating]) -> Floats:
    return np.asarray(np.rint(values * _GRID) / _GRID, dtype=np.float32)


@cache
def _choice(categories: int) -> Numbers:
    """int64 [256]: which category a random byte stands for; category k has a share of 1/(k + 2)."""
    shares = 1.0 / (np.arange(categories) + 2.0)
    scattered = np.arange(256) * 77 % 256  # so that the low bit, which decides something else, tells nothing
    return np.searchsorted(np.cumsum(shares) / shares.sum(), (scattered + 0.5) / 256).astype(np.int64)


@cache
def _flag_limits() -> NDArray[np.uint8]:
    """Below which byte each flag is on: from one row in sixteen to one in two."""
    return np.linspace(16, 128, FLAGS).astype(np.uint8)


@cache
def _normal() -> Floats:
    """float32 [65536]: the standard normal number that 16 random bits stand for."""
    from scipy.special import ndtri

    return np.asarray(ndtri((np.arange(65536) + 0.5) / 65536), dtype=np.float32)


@cache
def _logistic() -> Floats:
    """float32 [65536]: the logistic number that 16 random bits stand for; log-odds above it mean a click."""
    from scipy.special import logit

    return np.asarray(logit((np.arange(65536) + 0.5) / 65536), dtype=np.float32)
