"""Telling people of decisions beside the flows' own work: a receiver that hangs or fails holds nothing up."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from contextvars import copy_context

from models.errors import BadInput
from monitoring import notify
from monitoring.database import connect
from pipelines.settings import Settings

LOG = logging.getLogger("fedloop")


def tell(settings: Settings, patience_s: float = 15.0) -> list[str]:
    """Tell what has not been told; sentences of what failed so far. After `patience_s` it is left to the next call."""
    ways = notify.channels(settings.alarm)
    if settings.alarm.notify_block:
        ways[f"block-{settings.alarm.notify_block}"] = _by_block(settings.alarm.notify_block)
    if not ways:
        return []
    failed: list[str] = []

    def work() -> None:
        try:
            engine = connect(settings.database_url)
            failed.extend(notify.deliver(engine, settings.model_name, ways))
            engine.dispose()
        except Exception as error:
            LOG.warning("decisions could not be told: %s: %s", type(error).__name__, error)

    thread = threading.Thread(target=copy_context().run, args=(work,), name="notify", daemon=True)
    thread.start()
    thread.join(patience_s)
    return failed


def _by_block(name: str) -> notify.Send:
    """A Prefect notification block, type/name as `prefect block ls` shows it."""

    def send(text: notify.Message) -> None:
        from prefect.blocks.abstract import NotificationBlock
        from prefect.blocks.core import Block

        block = Block.load(name)
        if not isinstance(block, NotificationBlock):
            raise BadInput(f"the block {name} is no notification block; see alarm.notify_block")
        with block.raise_on_failure():  # else it only logs that nobody was told
            said = block.notify(text.body, text.title)
            if inspect.isawaitable(said):  # a block of one's own may be written so
                asyncio.run(said)

    return send
