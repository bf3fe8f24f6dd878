"""Tokens that let a person sit down at a site's desk; only their hashes are kept, at the site.

A token is 32 random bytes, so a plain SHA-256 is enough: there is nothing to guess that a slow hash would protect.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time

import sqlalchemy as sa

from models.errors import BadInput
from pipelines.federated.site_tables import TOKENS, writing

ANNOTATOR = re.compile(r"[\w@.+-]{1,64}")
"""What an annotator may be called."""


def make_token(database: sa.Engine, annotator: str) -> str:
    """A new token for a person at this site. It is told once; what is kept cannot be turned back into it.

    Raises:
        BadInput: the name could not be kept beside a vote.
    """
    if not ANNOTATOR.fullmatch(annotator):
        raise BadInput(f"the annotator's name {annotator!r} may hold letters, digits, @ . + - _ only, 64 at most")
    token = secrets.token_urlsafe(32)
    with writing(database) as connection:
        connection.execute(sa.insert(TOKENS).values(sha256=_hash(token), annotator=annotator, made_at=time.time()))
    return token


def revoke_tokens(database: sa.Engine, annotator: str) -> int:
    """End all tokens of a person; returns how many there were. Their votes stay."""
    valid = (TOKENS.c.annotator == annotator) & TOKENS.c.revoked_at.is_(None)
    with writing(database) as connection:
        return connection.execute(sa.update(TOKENS).where(valid).values(revoked_at=time.time())).rowcount


def annotator_of(database: sa.Engine, token: str) -> str | None:
    """Whose token that is, None where it is nobody's."""
    with database.connect() as connection:
        valid = list(connection.execute(sa.select(TOKENS).where(TOKENS.c.revoked_at.is_(None))))
    given, found = _hash(token), None
    for row in valid:  # all of them, each in constant time: how long it takes says nothing about any of them
        if hmac.compare_digest(given, row.sha256):
            found = str(row.annotator)
    return found


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
