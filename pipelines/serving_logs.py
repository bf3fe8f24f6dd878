"""The service's own log: lines for people, or JSON for programs; each names the request that it is about."""

from __future__ import annotations

import json
import logging
import re
import sys
import uuid
from contextvars import ContextVar
from itertools import count

HEADER = "x-request-id"
"""Of a request, if the client gives it one, and of every answer."""

REQUEST: ContextVar[str] = ContextVar("request", default="-")
"""The id of the request that is being answered."""

# Chance costs a system call, so it is asked once: what follows it counts.
_START, _NEXT = uuid.uuid4().hex[:12], count(1)
_ID = re.compile(r"[!-~]{1,64}")


def request_id(given: str | None) -> str:
    """The client's id for its request where it can be printed, else a new one; known to the log from now on."""
    name = given if given and _ID.fullmatch(given) else f"{_START}-{next(_NEXT):x}"
    REQUEST.set(name)
    return name


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{record.msecs:03.0f}",
            "level": record.levelname,
            "logger": record.name,
            "request_id": REQUEST.get(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line | getattr(record, "about", {}))


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return super().format(record) + ("" if (name := REQUEST.get()) == "-" else f" [request {name}]")


def configure(as_json: bool) -> None:
    """All of the process logs to stderr, in one form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if as_json else _Lines("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
