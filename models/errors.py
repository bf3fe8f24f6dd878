"""The one family of errors that a user can fix.

Every message says what is wrong, where, and what to do about it; the command line prints it as a sentence and
exits with 2, the service turns it into a 4xx or 503 answer.
"""

from __future__ import annotations


class FedloopError(Exception):
    """Something the user can fix; the message says what, where and how."""


class BadInput(FedloopError):
    """Input that does not fit the task: an image, a label, a source, an unknown name."""


class Missing(FedloopError):
    """Something that must exist first: data files, a champion, a snapshot, a server."""
