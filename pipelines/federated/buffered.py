"""Rounds without waiting for anybody: the asynchronous server of FedBuff on the virtual clock.

A number of devices is always at work. The server takes the next `goal` reports, whichever version of the model their
devices started from, makes a step, and every seat that becomes free goes to the next device that comes, which starts
from the newest version. Slow devices are heard as well, with less weight the older their start.

Nguyen et al., "Federated learning with buffered asynchronous aggregation", AISTATS 2022.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace

import numpy as np

from models.draws import draw_seed
from models.errors import BadInput
from models.population import Ids
from pipelines.federated.clock import Clock, Flights
from pipelines.federated.cohort import Cohort, Committed
from pipelines.federated.fleet import Fleet
from pipelines.federated.gathering import RETRY_BOUNDS_S, Gathering, after
from pipelines.federated.polling import ACCEPTED, FULL, VERDICTS, Comers, Counts, block_size, polls
from pipelines.federated.rest import HOUR_S, Floats
from pipelines.federated.sessions import FINISHED, LATE, SessionCost, in_words, run_sessions, shapes


@dataclass(frozen=True)
class Buffering:
    """concurrency: devices at work at a time; longest_staleness: server steps since its start that a report may be old.

    A device that is older is told to stop, so an engine needs the parameters of the last longest_staleness + 1
    versions and no others.
    """

    concurrency: int
    longest_staleness: int = 20

    def __post_init__(self) -> None:
        if self.concurrency < 1 or self.longest_staleness < 0:
            raise BadInput(
                f"an asynchronous server with a concurrency of {self.concurrency} and a longest staleness of"
                f" {self.longest_staleness} can do nothing; set a concurrency of at least 1, a staleness of at least 0"
            )


def gather_buffered(
    fleet: Fleet,
    cohort: Cohort,
    buffering: Buffering,
    counts: Counts,
    cost: SessionCost,
    seed: int,
    round_number: int,
    clock: Clock,
) -> tuple[Gathering, Clock]:
    """The next cohort.goal reports from clock.now_s on, and the clock after them.

    `Gathering.versions` says from which round's parameters each of them started. cohort.deadline_s bounds a device's
    own session; cohort.patience_s bounds the wait, after which fewer reports, down to the minimum, are enough.
    """
    cohort.require_goal(fleet.size)
    rng = np.random.Generator(np.random.SFC64(draw_seed("gather buffered", seed, round_number)))
    limit = clock.now_s + cohort.patience_s
    window = clock.retry_window_s(fleet.size, buffering.concurrency, cohort.target_selection_s, RETRY_BOUNDS_S)
    size = block_size(buffering.concurrency, clock.expected_share)
    too_old = round_number - 1 - clock.flights.versions > buffering.longest_staleness
    seats = _Seats(buffering.concurrency, cohort.goal, clock.flights.take(~too_old))
    tally = np.zeros(len(VERDICTS), dtype=np.int64)
    blocks = polls(fleet, cohort.eligibility, counts, clock, window, seats.members, size, rng)
    while seats.closed_s is None:
        block = next(blocks)
        comers = block.accepted.take(np.argsort(block.accepted.at_s))
        flights = _flights(fleet, cohort, cost, comers, round_number - 1, rng)
        turned_away = seats.pass_time(flights, comers.at_s, min(block.up_to_s, limit), limit)
        tally += block.tally(min(block.up_to_s, limit) if seats.closed_s is None else seats.closed_s)
        tally[ACCEPTED] -= turned_away
        tally[FULL] += turned_away

    closed = seats.closed_s
    stopped = clock.flights.take(too_old)
    ended = seats.pool.take(np.array(seats.ended, dtype=np.int64))
    flying = seats.pool.take(np.array([number for _, number in sorted(seats.busy)], dtype=np.int64))
    reports = ended.take(ended.fates == FINISHED)
    fates = np.concatenate([ended.fates, np.full(len(stopped), LATE)])
    sessions = shapes(fates)
    hours = f"{cohort.patience_s / HOUR_S:g} hours"
    outcome = cohort.judge(
        cohort.goal, len(reports), [f"in {hours}: {in_words(sessions)}, {len(flying)} still at work"]
    )
    committed = isinstance(outcome, Committed)
    # Who is told to stop because it is too old has downloaded everything and uploads nothing.
    down = int(ended.bytes_down.sum() + stopped.bytes_down.sum())
    up = int(ended.bytes_up.sum())
    useful = int(reports.bytes_down.sum() + reports.bytes_up.sum()) if committed else 0
    gathering = Gathering(
        round=round_number,
        outcome=outcome,
        ids=reports.ids,
        examples=counts(reports.ids),
        arrived_s=reports.ends_s,
        versions=reports.versions,
        started_s=clock.now_s,
        selected_s=clock.now_s,
        ended_s=closed,
        retry_window_s=window,
        polls=dict(zip(VERDICTS, tally.tolist(), strict=True)),
        left=0,
        selected=int(tally[ACCEPTED]),
        sessions=sessions,
        bytes_down=down,
        bytes_up=up,
        bytes_wasted=down + up - useful,
        participation=fleet.groups(reports.ids if committed else reports.ids[:0]),
        carried=len(clock.flights),
        in_flight=len(flying),
    )
    return gathering, replace(after(clock, gathering, cohort), flights=flying)


class _Seats:
    """The devices at work while time passes. Lives for one call of `gather_buffered`.

    pool: everybody who ever sat here; busy: a heap of (end, place in the pool); ended: places, in the order of ends.
    """

    def __init__(self, concurrency: int, goal: int, carried: Flights) -> None:
        self.concurrency, self.goal = concurrency, goal
        self.pool = carried
        self.busy = [(end, place) for place, end in enumerate(carried.ends_s.tolist())]
        heapq.heapify(self.busy)
        self.ended: list[int] = []
        self.reports = 0
        self.closed_s: float | None = None

    def members(self) -> Ids:
        """Who works, or worked since the call began: none of them can start again in it."""
        return np.sort(self.pool.ids)

    def pass_time(self, comers: Flights, at_s: Floats, until_s: float, limit_s: float) -> int:
        """Seat those who come at moments at_s, in order, where a seat is free; return how many found none.

        Time stops at the report that is needed last, at until_s, and for good at limit_s.
        """
        seated: list[int] = []
        first, turned_away = len(self.pool), 0
        fates = np.concatenate([self.pool.fates, comers.fates])
        for number, (at, end) in enumerate(zip(at_s.tolist(), comers.ends_s.tolist(), strict=True)):
            if at > until_s or self._end_until(at, fates, first, seated):
                break
            if len(self.busy) < self.concurrency:
                heapq.heappush(self.busy, (end, first + len(seated)))
                seated.append(number)
            else:
                turned_away += 1
        if self.closed_s is None and not self._end_until(until_s, fates, first, seated) and until_s >= limit_s:
            self.closed_s = limit_s
        self.pool = self.pool.and_then(comers.take(np.array(seated, dtype=np.int64)))
        return turned_away

    def _end_until(self, at_s: float, fates: Ids, first: int, seated: list[int]) -> bool:
        """End the sessions that are over by at_s; whether the last report needed was among them."""
        while self.closed_s is None and self.busy and self.busy[0][0] <= at_s:
            end, place = heapq.heappop(self.busy)
            self.ended.append(place)
            fate = fates[place] if place < first else fates[first + seated[place - first]]
            self.reports += int(fate == FINISHED)
            if self.reports == self.goal:
                self.closed_s = end
        return self.closed_s is not None


def _flights(
    fleet: Fleet, cohort: Cohort, cost: SessionCost, comers: Comers, version: int, rng: np.random.Generator
) -> Flights:
    """The sessions of devices that start when they come; after cohort.deadline_s the server gives a device up."""
    sessions = run_sessions(fleet, cost, comers.ids, comers.examples, comers.until_s, comers.at_s, rng)
    given_up = comers.at_s + cohort.deadline_s
    down, up = sessions.moved(given_up, cost)
    return Flights(
        comers.ids,
        np.full(len(comers), version, dtype=np.int64),
        np.where(sessions.ends_s <= given_up, sessions.fates, LATE),
        np.minimum(sessions.ends_s, given_up),
        down,
        up,
    )
