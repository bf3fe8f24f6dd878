"""A round of a fleet on the virtual clock: selection, configuration, reporting.

Devices come by themselves (`polling.py`). Those accepted wait, and leave when they are unplugged; when enough are
there together, all start (`sessions.py`); the round closes with the last report it needs, or at the deadline. Comes in:
fleet, cohort, clock. Comes out: who reported, what became of everybody else, and the next clock. Nothing is trained
here: a round's outcome is a function of (seed, round, clock) alone.

After Bonawitz et al., "Towards federated learning at scale: system design", 2019, section 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from models.draws import draw_seed
from models.population import Ids
from pipelines.federated.clock import TOTALS, Clock
from pipelines.federated.cohort import DAY_S, Abandoned, Cohort, Committed
from pipelines.federated.fleet import Fleet
from pipelines.federated.polling import VERDICTS, Comers, Counts, block_size, nobody, polls
from pipelines.federated.rest import HOUR_S, Floats
from pipelines.federated.sessions import FINISHED, LATE, SessionCost, in_words, run_sessions, shapes

RETRY_BOUNDS_S = (HOUR_S, DAY_S)
"""Pace steering asks no device to poll more often than once an hour, or less often than once a day."""


@dataclass(frozen=True)
class Gathering:
    """A round as it went; times in virtual seconds.

    ids: int64 [reports], who reported, in the order of arrival: these train where the outcome is Committed; examples,
    arrived_s: of the same; versions: the round whose parameters each started from (synchronous: the one before).
    started_s, selected_s, ended_s: when selection opened, when the sessions began, when the round closed.
    polls: verdict (of polling.VERDICTS) → polls; left: accepted devices that were gone before the sessions began;
    sessions: fate (of sessions.FATES) → sessions; carried, in_flight: sessions of the asynchronous server from before
    the round, and after it. bytes_wasted: of sessions that no model learned from.
    participation: trait → reports by kind, as `Fleet.shares` orders them; none of an abandoned round.

    What is conserved: accepted = left + selected, and carried + selected = all sessions + in_flight.
    """

    round: int
    outcome: Committed | Abandoned
    ids: Ids
    examples: Ids
    arrived_s: Floats
    versions: Ids
    started_s: float
    selected_s: float
    ended_s: float
    retry_window_s: float
    polls: Mapping[str, int]
    left: int
    selected: int
    sessions: Mapping[str, int]
    bytes_down: int
    bytes_up: int
    bytes_wasted: int
    participation: Mapping[str, Ids]
    carried: int = 0
    in_flight: int = 0

    @property
    def staleness(self) -> Ids:
        """Rounds that passed since each report's device started: int64 [reports]."""
        return self.round - 1 - self.versions

    def weights(self) -> Floats:
        """What each report counts: float64 [reports], 1/sqrt(1 + staleness) (Nguyen et al., FedBuff, 2022)."""
        return np.asarray(1.0 / np.sqrt(1.0 + self.staleness))

    def figures(self) -> dict[str, Any]:
        """The round in plain numbers, for a log in JSON and for `pipelines.fleet_report.plot_fleet`."""
        abandoned = self.outcome.reason if isinstance(self.outcome, Abandoned) else None
        return {
            "round": self.round, "abandoned": abandoned, "reports": len(self.ids),
            "started_s": round(self.started_s, 3), "selected_s": round(self.selected_s, 3),
            "ended_s": round(self.ended_s, 3), "retry_window_s": round(self.retry_window_s, 1),
            "polls": dict(self.polls), "left": self.left, "selected": self.selected, "sessions": dict(self.sessions),
            "bytes_down": self.bytes_down, "bytes_up": self.bytes_up, "bytes_wasted": self.bytes_wasted,
            "staleness": round(float(self.staleness.mean()), 3) if len(self.ids) else 0.0,
            "participation": {trait: counts.tolist() for trait, counts in self.participation.items()},
        }  # fmt: skip


def gather(
    fleet: Fleet, cohort: Cohort, counts: Counts, cost: SessionCost, seed: int, round_number: int, clock: Clock
) -> tuple[Gathering, Clock]:
    """One synchronous round from clock.now_s on, and the clock after it.

    The clock goes on also where the round is abandoned: for want of devices after cohort.patience_s, for want of
    reports at the deadline. Contributions of an abandoned round reach no model and count for no separation.
    """
    cohort.require_goal(fleet.size)
    rng = np.random.Generator(np.random.SFC64(draw_seed("gather", seed, round_number)))
    chosen = _select(fleet, cohort, counts, clock, rng)
    who = chosen.present
    sessions = run_sessions(fleet, cost, who.ids, who.examples, who.until_s, chosen.closed_s, rng)
    done = np.flatnonzero(sessions.fates == FINISHED)
    done = done[np.argsort(sessions.ends_s[done], kind="stable")]
    closes = min(chosen.closed_s + cohort.deadline_s, float(sessions.ends_s.max(initial=chosen.closed_s)))
    if len(done) >= cohort.goal:
        closes = min(closes, float(sessions.ends_s[done[cohort.goal - 1]]))
    reported = done[sessions.ends_s[done] <= closes][: cohort.goal]

    fates = np.where(sessions.ends_s <= closes, sessions.fates, LATE)
    fates[fates == FINISHED] = LATE  # a tie with the last report
    fates[reported] = FINISHED
    down, up = sessions.moved(closes, cost)
    ended = shapes(fates)
    outcome: Committed | Abandoned
    if chosen.failure is not None:
        outcome = Abandoned(chosen.failure)
    else:
        outcome = cohort.judge(cohort.goal, len(reported), [f"of {len(who)} selected: {in_words(ended)}"])
    wasted = fates != FINISHED if isinstance(outcome, Committed) else np.ones(len(fates), dtype=bool)
    ids = who.ids[reported]
    gathering = Gathering(
        round=round_number,
        outcome=outcome,
        ids=ids,
        examples=who.examples[reported],
        arrived_s=sessions.ends_s[reported],
        versions=np.full(len(ids), round_number - 1, dtype=np.int64),
        started_s=clock.now_s,
        selected_s=chosen.closed_s,
        ended_s=closes,
        retry_window_s=chosen.window_s,
        polls=dict(zip(VERDICTS, chosen.tally.tolist(), strict=True)),
        left=chosen.left,
        selected=len(who),
        sessions=ended,
        bytes_down=int(down.sum()),
        bytes_up=int(up.sum()),
        bytes_wasted=int(down[wasted].sum() + up[wasted].sum()),
        participation=fleet.groups(ids if isinstance(outcome, Committed) else ids[:0]),
    )
    return gathering, after(clock, gathering, cohort)


def after(clock: Clock, gathering: Gathering, cohort: Cohort) -> Clock:
    """The clock after a round: its time, its contributions, what pace steering learned, and the totals."""
    separation = cohort.eligibility.minimum_separation_s
    committed = isinstance(gathering.outcome, Committed)
    contributed, arrived_s = (gathering.ids, gathering.arrived_s) if committed else (gathering.ids[:0], np.zeros(0))
    polled = sum(gathering.polls.values())
    shares, seen = clock.learned(polled, gathering.polls["accepted"] + gathering.polls["full"])
    figures = {"rounds": 1, "committed": int(committed), "polled": polled, "selected": gathering.selected}
    figures |= dict(gathering.sessions)
    figures |= {name: getattr(gathering, name) for name in ("bytes_down", "bytes_up", "bytes_wasted")}
    return replace(
        clock,
        now_s=gathering.ended_s,
        contributions=clock.with_contributions(contributed, arrived_s, separation, gathering.ended_s),
        shares=shares,
        seen=seen,
        totals=clock.totals + np.array([figures[name] for name in TOTALS], dtype=np.int64),
    )


# -- selection --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Selection:
    """present: who starts, at closed_s; left: who was accepted and did not stay; failure: why there are too few."""

    present: Comers
    closed_s: float
    left: int
    tally: Ids
    window_s: float
    failure: str | None = None


def _select(fleet: Fleet, cohort: Cohort, counts: Counts, clock: Clock, rng: np.random.Generator) -> _Selection:
    """Wait until `wanted` devices are there together; from selection_timeout_s on, until `least` are."""
    start, limit = clock.now_s, clock.now_s + cohort.patience_s
    window = clock.retry_window_s(fleet.size, cohort.wanted, cohort.target_selection_s, RETRY_BOUNDS_S)
    tally = np.zeros(len(VERDICTS), dtype=np.int64)
    waiting, left, most = nobody(), 0, 0
    block_of = block_size(cohort.wanted, clock.expected_share)
    blocks = polls(fleet, cohort.eligibility, counts, clock, window, lambda: waiting.ids, block_of, rng)
    while True:
        block = next(blocks)
        came = block.accepted.take(block.accepted.at_s <= limit)
        everyone = waiting.and_then(came)
        everyone = everyone.take(np.argsort(everyone.ids, kind="stable"))
        moments = np.sort(came.at_s)
        gone = np.sort(everyone.until_s[everyone.until_s <= block.up_to_s])
        present = len(waiting) + np.arange(1, len(came) + 1) - np.searchsorted(gone, moments, "right")
        in_time = moments < start + cohort.selection_timeout_s
        enough = np.flatnonzero(present >= np.where(in_time, cohort.wanted, cohort.least))
        if len(enough):
            closed = float(moments[enough[0]])
            everyone = everyone.take(everyone.at_s <= closed)
        else:
            closed = min(block.up_to_s, limit)
            most = max(most, int(present.max(initial=0)))
        tally = tally + block.tally(closed)
        stayed = everyone.until_s > closed
        left += int((~stayed).sum())
        waiting = everyone.take(stayed)
        if len(enough):
            return _Selection(waiting, closed, left, tally, window)
        if closed >= limit:
            failure = _too_few(cohort, most, tally)
            return _Selection(nobody(), closed, left + len(waiting), tally, window, failure)


def _too_few(cohort: Cohort, most: int, tally: Ids) -> str:
    shares = tally / max(int(tally.sum()), 1)
    needs = cohort.eligibility
    refused = (
        "lack the locale or memory",
        "were not charging, unmetered and idle",
        f"had contributed in the last {needs.minimum_separation_s / HOUR_S:g} hours",
        f"hold fewer than {needs.minimum_examples} examples",
    )
    return (
        f"in {cohort.patience_s / HOUR_S:g} hours never more than {most} devices were ready together, and"
        f" {cohort.least} are needed; of {int(tally.sum()):,} devices that polled "
        + ", ".join(f"{share:.0%} {why}" for share, why in zip(shares, refused, strict=False))
    )
