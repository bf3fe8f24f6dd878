"""Keeping the traffic log within its limits: what may go is what the loop does not need any more."""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa

from monitoring import retention
from monitoring.database import AGGREGATES, PREDICTIONS, WINDOWS
from monitoring.safety_net import SafetyNet
from monitoring.spool import Spool
from monitoring.traffic import LOGGED_AT, TrafficLog
from pipelines.judging import LABELS_MAY_TAKE
from pipelines.settings import Settings

MOST_WINDOWS = 500  # of one pass, which others wait for


def keep_within_limits(settings: Settings, dry_run: bool = False, most_windows: int = MOST_WINDOWS) -> list[str]:
    """Take away what the settings' `log` limits want away; a sentence if there is something to say."""
    if not settings.log.keep_days and not settings.log.keep_gb:
        return []
    log = TrafficLog.open(settings.database_url, settings.images)
    try:
        needed = retention.needed_from(log.engine, settings.retrain.maximum_new_rows, LABELS_MAY_TAKE)
        found = retention.plan(log.engine, settings.log, needed)
        said, going = [], found.windows
        if dry_run and going:
            rows = f"rows {going[0].from_seq} to {going[-1].to_seq - 1}"
            said.append(f"the log would forget {len(going)} windows, {rows}; nothing is removed")
        elif going:
            gone = retention.prune(log, going[:most_windows])
            megabytes = f"{gone.picture_bytes / 1e6:.1f} MB"
            said.append(
                f"the log forgot {gone.windows} windows ({gone.rows} rows, {gone.pictures} pictures of {megabytes}); "
                "their aggregates stay"
            )
        if found.over_bytes:
            over = f"the log is {found.over_bytes / 1e9:.2f} GB over log.keep_gb"
            said.append(f"{over}; the rest is needed by windows to come, an open decision or the next retraining")
        return said
    finally:
        log.close()


def merge(settings: Settings) -> int:
    """Bring what lies in the spool into the database; how many rows.

    Raises:
        Missing: the database does not answer.
    """
    log = TrafficLog.open(settings.database_url, settings.images)
    net = SafetyNet(log, settings.spool)
    try:
        return net.merge()
    finally:
        net.close()
        log.close()


def describe(settings: Settings) -> list[str]:
    """The log's size and age, in sentences."""
    log = TrafficLog.open(settings.database_url, settings.images)
    rows = sa.select(sa.func.count(), sa.func.sum(PREDICTIONS.c.picture_bytes), sa.func.min(LOGGED_AT)).select_from(
        PREDICTIONS
    )
    reported = sa.select(sa.func.count(), sa.func.max(WINDOWS.c.to_seq)).select_from(WINDOWS)
    forgotten = sa.select(sa.func.coalesce(sa.func.sum(AGGREGATES.c.rows), 0))
    with log.engine.connect() as connection:
        count, pictures, since = connection.execute(rows).one()
        windows, to_seq = connection.execute(reported).one()
        gone = connection.execute(forgotten).scalar_one()
        unseen = sa.select(sa.func.count()).select_from(PREDICTIONS).where(PREDICTIONS.c.seq >= (to_seq or 0))
        waiting = connection.execute(unseen).scalar_one()
    where = log.engine.url.render_as_string()
    log.close()
    megabytes = (count * retention.ROW_BYTES + (pictures or 0)) / 1e6
    began = f" since {datetime.fromtimestamp(since, UTC):%Y-%m-%d %H:%M} UTC" if since else ""
    return [
        f"{where}: {count} rows{began}, about {megabytes:.0f} MB with their pictures",
        f"{windows} windows are reported, {waiting} rows wait for one; of {gone} rows only aggregates are left",
        f"the spool holds {Spool(settings.spool).size_bytes() / 1e6:.1f} MB",
    ]
