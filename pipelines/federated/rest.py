"""When phones rest on their chargers: the three conditions of a training session, at any moment, and until when.

Local time falls into days (9:00 to 18:00) and nights (18:00 to 9:00). Each part of each day has its own word, a hash
of the device and the part, and at most one charging session, which does not leave the part. So one hash says what
holds at a moment, and sessions of a device never overlap.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from models.draws import Words, seeds_of
from pipelines.federated.cohort import DAY_S, Eligibility
from pipelines.federated.packed_draws import EXPONENTIAL, NORMAL, field, happens

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

HOUR_S = 3600.0
MORNING_H = 9.0
DAY_H = 9.0
_ODD = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Rest:
    """The charging session that a device may have in each night, or each day, in local hours.

    start_h, habit_h, start_jitter_h: mean hour of plugging in, its standard deviation between devices and between
    days; length_h, length_habit_h, length_jitter_h: the same for how long it stays plugged in; charging: probability
    that there is a session at all; unmetered: that the network is unmetered; idle_after_h: mean time for which the
    device is still in use after plugging in (exponential). From then on it is idle until it is unplugged. at_home:
    whether the device must own an unmetered network at home for that.
    """

    start_h: float
    habit_h: float
    start_jitter_h: float
    length_h: float
    length_habit_h: float
    length_jitter_h: float
    charging: float
    unmetered: float
    idle_after_h: float
    at_home: bool


@dataclass(frozen=True)
class Availability:
    """What holds at devices at a moment each, as parallel arrays [devices].

    ready: all conditions that were asked for hold; until_s: the moment at which the first of them ends.
    """

    charging: Flags
    unmetered: Flags
    idle: Flags
    ready: Flags
    until_s: Floats


def availability(
    words: Words, at_s: Floats, offset_s: Floats, home_wifi: Flags, night: Rest, day: Rest, needs: Eligibility
) -> Availability:
    """What holds at device i at the virtual moment at_s[i] (UTC seconds), where local time is offset_s[i] later.

    words: one per device; the draws at its positions 2 and 3 are the device's habits.
    """
    local_s = at_s + (offset_s - MORNING_H * HOUR_S)
    date = np.floor(local_s / DAY_S)
    hours = ((local_s - date * DAY_S) / HOUR_S).astype(np.float32)  # since 9:00, to 0.01 s
    dark = hours >= DAY_H
    with np.errstate(over="ignore"):
        part = (2 * date.astype(np.int64) + dark).view(np.uint64) * _ODD
    today = seeds_of(0, words ^ part)
    if dark.all():
        return _in_part(words, today, at_s, hours, home_wifi, night, 24.0, needs)
    if not dark.any():
        return _in_part(words, today, at_s, hours, home_wifi, day, DAY_H, needs)
    flags = np.empty((4, len(words)), dtype=bool)
    whole = Availability(flags[0], flags[1], flags[2], flags[3], np.empty(len(words)))
    for chosen, rest, ends in ((np.flatnonzero(dark), night, 24.0), (np.flatnonzero(~dark), day, DAY_H)):
        there = (words[chosen], today[chosen], at_s[chosen], hours[chosen], home_wifi[chosen])
        found = _in_part(*there, rest, ends, needs)
        for name in fields(Availability):
            getattr(whole, name.name)[chosen] = getattr(found, name.name)
    return whole


def _in_part(
    words: Words,
    today: Words,
    at_s: Floats,
    hours: NDArray[np.float32],
    home_wifi: Flags,
    rest: Rest,
    part_ends: float,
    needs: Eligibility,
) -> Availability:
    """The same where all devices are in the same part of the day, at `hours` since 9:00; today: the part's words."""
    start = (
        np.float32(rest.start_h - MORNING_H)
        + np.float32(rest.habit_h) * NORMAL.take(field(words, 2))
        + np.float32(rest.start_jitter_h) * NORMAL.take(field(today, 0))
    )
    length = (
        np.float32(rest.length_h)
        + np.float32(rest.length_habit_h) * NORMAL.take(field(words, 3))
        + np.float32(rest.length_jitter_h) * NORMAL.take(field(today, 1))
    )
    ends = np.minimum(start + length, np.float32(part_ends))
    plugged = (start <= hours) & (hours < ends)
    in_use = np.float32(rest.idle_after_h) * EXPONENTIAL.take(field(today, 3))
    charging = plugged & happens(today, 2, rest.charging)
    idle = plugged & (start + in_use <= hours)
    unmetered = happens(today, 4, rest.unmetered)
    if rest.at_home:
        unmetered &= home_wifi
    ready = np.ones(len(words), dtype=bool)
    until = np.full(len(words), np.inf, dtype=np.float32)
    for needed, holds, end in (
        (needs.unmetered, unmetered, np.full(len(words), part_ends, dtype=np.float32)),
        (needs.charging, charging, ends),
        (needs.idle, idle, ends),
    ):
        if needed:
            ready &= holds
            until = end
    return Availability(charging, unmetered, idle, ready, at_s + HOUR_S * (until - hours))
