"""Release by steps: in shadow, for a share of the sites, for all on probation; held or rolled back on evidence.

In goes a version that passed the gate; a pass (`advance`) looks at what the log says of it beside the version that it
is to replace, and moves it or waits. A move's row is written first and then carried out, and every pass begins with
what an earlier one left half done: it may be killed anywhere and repeated.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa

from monitoring import health, moves
from monitoring.health import Health
from monitoring.moves import BESIDE, CANARY, CHAMPION, ENDED, HELD, OPEN, ROLLED_BACK, SETTLED, SHADOW, Move
from monitoring.side_by_side import Evidence, bound, pairs, weigh
from pipelines import registry, release
from pipelines.registry import CHALLENGER, FALLBACK, STEP
from pipelines.settings import ReleaseSettings, Settings

LOG = logging.getLogger("fedloop")


def begin(settings: Settings, version: int, reason: str) -> str:
    """Release a version that the gate let pass; says in a sentence what was done.

    It goes straight to champion where there is none yet, or where the settings want no steps.
    """
    champion = registry.by_alias(settings, registry.CHAMPION)
    if champion is None or champion.number == version or not settings.steps:
        release.promote(settings, version, reason)
        return f"version {version} is champion"
    with release.ledger(settings) as engine:
        standing = moves.standing(engine)
        last = standing.get(version)
        if last is not None and last.to_step in (HELD, ROLLED_BACK):
            return f"version {version} stays challenger: it was {last.to_step} before ({last.reason})"
        for other in [one for one in standing.values() if one.to_step in BESIDE and one.version != version]:
            release.stand(settings, engine, other.version, ENDED, f"version {version} takes its place")
        if last is None or last.to_step not in BESIDE:
            release.stand(settings, engine, version, SHADOW, reason)
            return f"version {version} goes into shadow beside version {champion.number}"
    return f"version {version} is in {last.to_step} already"


def on_its_way(settings: Settings) -> str | None:
    """A sentence on the version in shadow or canary, while there is one: it may be the cure of what is wrong."""
    with release.ledger(settings) as engine:
        beside = [move for move in moves.standing(engine).values() if move.to_step in BESIDE]
    return f"version {beside[-1].version} is in {beside[-1].to_step} already" if beside else None


def advance(settings: Settings, now: float | None = None) -> list[str]:
    """One pass over the versions that are on their way; returns a sentence for everything that was done.

    Raises:
        Missing: the registry does not answer; the moves wait.
    """
    now = time.time() if now is None else now
    with release.ledger(settings) as engine:
        done = [*_mend(settings, engine), *_probation(settings, engine, now), *_beside(settings, engine, now)]
    for sentence in done:
        LOG.info("release: %s", sentence)
    return done


# -- what a pass does ---------------------------------------------------------------------------------------------


def _mend(settings: Settings, engine: sa.Engine) -> list[str]:
    """Carry out what a pass or a command wrote down and was killed over."""
    standing, done = moves.standing(engine), []
    champion, challenger, fallback = (
        registry.by_alias(settings, alias) for alias in (registry.CHAMPION, CHALLENGER, FALLBACK)
    )
    for alias, version in ((CHALLENGER, challenger), (FALLBACK, fallback)):
        if champion is not None and version is not None and version.number == champion.number:
            registry.drop_alias(settings, alias)  # the last stroke of a promotion and of a rollback
    for last in standing.values():
        serves = champion is not None and champion.number == last.version
        called = challenger is not None and challenger.number == last.version
        if last.to_step == ROLLED_BACK and serves and fallback is not None:
            release.rollback(settings, last.reason)
            done.append(f"the interrupted rollback of version {last.version} is finished")
        elif last.to_step == CHAMPION and not serves and called:
            release.promote(settings, last.version, last.reason)
            done.append(f"the interrupted promotion of version {last.version} is finished")
        elif last.to_step == CHAMPION and not serves:
            release.stand(settings, engine, last.version, ENDED, "it is champion no more")
        elif last.to_step in BESIDE and not called:  # a later version, which the gate held, took the name
            registry.set_alias(settings, CHALLENGER, last.version)
    standing = moves.standing(engine)
    for version in filter(None, (champion, challenger)):
        said = version.tags.get(STEP)
        # A tag without a move is of a log that is no more: nobody would ever end that step.
        step = standing[version.number].to_step if version.number in standing else ENDED if said in OPEN else said
        if step is not None and step != said:
            registry.tag(settings, version.number, {STEP: step})
    return done


def _probation(settings: Settings, engine: sa.Engine, now: float) -> list[str]:
    """Roll a new champion back when it is worse than the one before it on the same rows; else let it settle."""
    policy = settings.release
    for last in [one for one in moves.standing(engine).values() if one.to_step == CHAMPION]:
        fallback = registry.by_alias(settings, FALLBACK)
        if fallback is None:
            release.stand(settings, engine, last.version, SETTLED, "there is no version to roll back to")
            continue
        seen = look(settings, engine, last, fallback.number, now)
        if seen.against:
            release.rollback(settings, f"by itself: {seen.against}", seen.figures)
            return [f"version {last.version} is rolled back to {fallback.number}: {seen.against}"]
        patient = now - last.at >= policy.patience_s
        if patient or (seen.all.answered >= policy.probation_rows and now - last.at >= policy.probation_s):
            reason = f"it kept its place over {seen.all.answered} rows ({seen.says})"
            release.stand(settings, engine, last.version, SETTLED, reason, seen.figures)
            return [f"version {last.version} is settled: {reason}"]
    return []


def _beside(settings: Settings, engine: sa.Engine, now: float) -> list[str]:
    """Move the version in shadow or canary on, or hold it."""
    policy, champion = settings.release, registry.by_alias(settings, registry.CHAMPION)
    standing = moves.standing(engine)
    beside = [one for one in standing.values() if one.to_step in BESIDE]
    if champion is None or not beside:
        return []
    last = beside[-1]
    seen = look(settings, engine, last, champion.number, now)
    if not seen.against and now - last.at >= policy.patience_s:
        seen = replace(
            seen, against=f"too little was seen of it within {policy.patience_s / 3600:.0f} hours ({seen.says})"
        )
    if seen.against:
        release.stand(settings, engine, last.version, HELD, seen.against, seen.figures)
        return [f"version {last.version} is held in {last.to_step}: {seen.against}"]
    in_shadow = last.to_step == SHADOW
    enough = seen.all.rows >= policy.shadow_rows if in_shadow else seen.all.answered >= policy.canary_rows
    long = now - last.at >= (policy.shadow_s if in_shadow else policy.canary_s)
    # With labels, the burden of proof is the challenger's; without, the gate's verdict stands until they come.
    level = seen.all.labelled < policy.first_rows or seen.all.gain >= -policy.score_margin
    if not (enough and long and level):
        return []
    if in_shadow:
        release.stand(settings, engine, last.version, CANARY, seen.says, seen.figures)
        return [f"version {last.version} answers {policy.canary_share:.0%} of the sites: {seen.says}"]
    if any(one.to_step == CHAMPION for one in standing.values()):
        return []  # one at a time: the fallback would be a version that nobody has proved
    release.promote(settings, last.version, f"shadow: {last.reason}; canary: {seen.says}", seen.figures)
    return [f"version {last.version} is champion, on probation: {seen.says}"]


# -- what is looked at --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """What is known of a version since its last move. against: why it may not go on; empty: nothing.

    asked: how its own requests fared.
    """

    all: Evidence
    asked: Health
    against: str

    @property
    def figures(self) -> dict[str, Any]:
        counts = self.asked.counts
        told = {"errors": counts.errors, "abstained": counts.abstained, "p99_s": self.asked.latency_s(0.99)}
        return self.all.figures() | {name: round(value, 4) for name, value in told.items() if value == value}

    @property
    def says(self) -> str:
        found = self.all
        parts = [f"{found.rows} rows"]
        if not math.isnan(found.agreement):
            parts.append(f"agreement {found.agreement:.2f}")
        parts.append(
            f"right {found.score:.3f} against {found.score_before:.3f} on {found.labelled} labels"
            if found.labelled
            else "no labels"
        )
        return ", ".join(parts)


def look(settings: Settings, engine: sa.Engine, last: Move, other: int, now: float) -> Look:
    """A version beside another since its last move: all rows, and the newest window's alone, which nothing dilutes."""
    policy, span = settings.release, now - last.at
    seen = pairs(engine, last.version, other, last.from_seq)
    every, newest = (
        weigh(rows, last.version, policy.score_confidence) for rows in (seen, seen.head(settings.drift.window_rows))
    )
    # In canary the other one answers at the same time, on probation it answered before.
    asked = health.health(engine, last.at, now, last.version)
    before = health.health(engine, last.at - span, now, other)
    return Look(every, asked, against(every, policy) or against(newest, policy) or fares_worse(asked, before, policy))


def against(seen: Evidence, policy: ReleaseSettings) -> str:
    """What speaks against a version, in a sentence; empty: nothing that is sure enough."""
    if seen.rows < policy.first_rows:
        return ""
    if seen.error_low > policy.error_margin:
        return f"it failed on {seen.failed} of {seen.rows} rows"
    if seen.labelled >= policy.first_rows and seen.gain_high < -policy.score_margin:
        return f"it is right on {seen.score:.3f} of {seen.labelled} labels, and the other on {seen.score_before:.3f}"
    if seen.labelled < policy.first_rows and seen.agreement_high < policy.minimum_agreement:
        return f"it agrees with the other on {seen.agreement:.2f} of {seen.rows} rows only"
    if seen.slower_low > policy.latency_ratio:
        return f"it takes {seen.slower:.1f} times as long as the other on the same rows"
    return ""


def fares_worse(asked: Health, before: Health, policy: ReleaseSettings) -> str:
    """The same of how its requests fared, against those of the other version."""
    counts = asked.counts
    for part, whole, usual, margin, what in (
        (counts.errors, counts.answered + counts.errors, before.error_share, policy.error_margin, "requests failed"),
        (counts.abstained, counts.rows, before.abstained_share, policy.abstain_margin, "rows were abstained from"),
    ):
        if whole >= policy.first_rows and bound(part, whole, policy.score_confidence, "low") > (usual or 0.0) + margin:
            return f"{part} of {whole} {what}, with the other version {usual or 0.0:.1%}"
    return ""
