"""Who may pass the service's door: tokens, what they are for, how fast and how much a day.

Without any token the service is open to this machine and closed to every other; from the first one on, tokens are
required. Speed is a token bucket that may go into debt, so that a batch larger than the bucket passes once and is
paid for afterwards. What a token asks a day is bounded, because whoever may ask without end can copy the model
(Tramèr et al., "Stealing Machine Learning Models via Prediction APIs", 2016).
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa

from models.errors import Missing
from monitoring.engines import reason
from pipelines import serving_tokens as tokens
from pipelines.federated.files import write_atomically
from pipelines.serving_tokens import Token
from pipelines.serving_wire import Refusal

REFRESH_S = 1.0
OPEN = ("/healthz", "/readyz", "/openapi.json", "/docs")
"""What a load balancer or a reader may ask without a token: it says nothing of a site."""

_SCOPES = {
    "/predict": "predict", "/predict/image": "predict", "/predict/images": "predict", "/predictions": "predict",
    "/model": "predict", "/feedback": "feedback", "/cases": "cases", "/metrics": "metrics",
}  # fmt: skip
_BURST_S = 2.0
_BLOCKS = 100  # a day's budget is claimed in so many blocks

logger = logging.getLogger("fedloop.service")


@dataclass
class _Meter:
    """level: rows that may pass now; negative: debt. claimed: rows of `day` claimed and not used yet."""

    level: float
    at: float
    day: str = ""
    claimed: int = 0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(frozen=True)
class Caller:
    """Who asks; token None: anybody, of a service that is open."""

    token: Token | None

    @property
    def site(self) -> str | None:
        return self.token.site if self.token else None

    def speaks_for(self, site: str | None) -> None:
        """
        Raises:
            Refusal: the token is another site's.
        """
        if self.site is not None and site != self.site:
            raise Refusal(403, "other_site", f"this token speaks for site {self.site!r}, not for {site!r}")


class Access:
    """The tokens as they were a moment ago, and what each may still ask.

    host: where the service listens. replicas: how many share the rate of a token. copy: a file that keeps the hashes,
    for a service that starts while the log's database is away.
    """

    def __init__(
        self,
        engine: sa.Engine,
        host: str,
        replicas: int = 1,
        copy: Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._engine, self._replicas, self._copy, self._clock = engine, replicas, copy, clock
        self._local = is_local(host)
        self._tokens: dict[str, Token] = {}
        self._meters: dict[str, _Meter] = {}
        self._known = self._opened = False  # whether they have been read at all; whether the tables are there
        self._read()

    def refresh(self) -> None:
        """Read the tokens. Whoever comes while the database is down is judged by those that were read last."""
        if not self._opened:
            tokens.open_tables(self._engine)
            self._opened = True
        found = tokens.valid(self._engine)
        if self._copy is not None and (found != self._tokens or not self._copy.exists()):
            write_atomically(self._copy, tokens.to_json(found))
        self._tokens, self._known = found, True

    def _read(self) -> None:
        try:
            self.refresh()
        except (sa.exc.SQLAlchemyError, Missing) as error:
            logger.warning("the tokens cannot be read: %s", reason(error))
            if not self._known and self._copy is not None and self._copy.exists():
                self._tokens, self._known = tokens.from_json(self._copy.read_bytes()), True

    async def follow(self) -> None:
        """Read them once a second, for ever."""
        while True:
            await asyncio.sleep(REFRESH_S)
            await asyncio.to_thread(self._read)

    def describe(self) -> str:
        """What the log says of it at the start."""
        if not self._known:
            return "the log's database is away, and with it the tokens: all is refused until they can be read"
        if self._tokens:
            return f"requests need one of {len(self._tokens)} tokens"
        if self._local:
            return "no token is defined: open to every program of this machine (`fedloop tokens add` closes it)"
        return "no token is defined and other machines can reach this address: all is refused until there is one"

    def admit(self, path: str, authorization: str) -> Caller:
        """The caller of a request to `path`, who pays for one row.

        Raises:
            Refusal: 401 without a valid token, 403 for one that is not for this, 429 for one that is too fast, 503
                where none could be read since the start.
        """
        # The desk has doors of its own at every site.
        if path in OPEN or path == "/desk" or path.startswith("/desk/"):
            return Caller(None)
        if not self._known:
            said = "the log's database is away, and with it the tokens that say who may ask; try again"
            raise Refusal(503, "log_unavailable", said, retry_after_s=2)
        if self._local and not self._tokens:
            return Caller(None)
        token = self._token(authorization)
        scope = _SCOPES.get(path) or ("cases" if path.startswith("/cases/") else "admin")
        if not token.scopes & {scope, "admin"}:
            raise Refusal(
                403, "wrong_scope", f"token {token.name!r} is for {', '.join(sorted(token.scopes))}, not for {scope}"
            )
        self._pay(token, 1)
        return Caller(token)

    async def charge(self, caller: Caller, rows: int) -> None:
        """Take so many predictions off the caller's limits; its request was one row already.

        Raises:
            Refusal: the day's budget does not reach.
        """
        token = caller.token
        if token is None:
            return
        if token.rows_per_day is not None:
            await self._spend(token, rows)
        if rows > 1:
            self._pay(token, rows - 1, due=False)

    def annotator(self, site: str, token: str) -> str | None:
        """Who may sit at a site's desk by a token of the service."""
        found = self._tokens.get(tokens.hash_of(token))
        if found is None or not found.scopes & {"desk", "admin"} or found.site not in (None, site):
            return None
        return found.name

    def _token(self, authorization: str) -> Token:
        scheme, _, given = authorization.partition(" ")
        found = self._tokens.get(tokens.hash_of(given.strip())) if scheme.lower() == "bearer" else None
        if found is None:
            said = "this token is not valid (any more)" if given else "a token is needed, as `Authorization: Bearer …`"
            refusal = Refusal(401, "no_token", f"{said}; the service's operator makes one with `fedloop tokens add`")
            refusal.headers["WWW-Authenticate"] = "Bearer"
            raise refusal
        return found

    def _pay(self, token: Token, rows: int, due: bool = True) -> None:
        if token.rows_per_s is None:
            return
        rate, now, meter = token.rows_per_s / self._replicas, self._clock(), self._meter(token)
        # A clock that was set back gives nothing, and takes nothing.
        meter.level = min(max(1.0, _BURST_S * rate), meter.level + max(0.0, now - meter.at) * rate)
        meter.at = now
        if due and meter.level < 1.0:
            wait_s = math.ceil((1.0 - meter.level) / rate)
            said = f"token {token.name!r} may ask {token.rows_per_s:g} rows a second; try again in {wait_s} s"
            raise Refusal(429, "too_fast", said, retry_after_s=wait_s)
        meter.level -= rows

    async def _spend(self, token: Token, rows: int) -> None:
        assert token.rows_per_day is not None
        meter = self._meter(token)
        async with meter.turn:
            now = self._clock()
            day = time.strftime("%Y-%m-%d", time.gmtime(now))
            if meter.day != day:
                meter.day, meter.claimed = day, 0
            if meter.claimed < rows:
                block = max(rows - meter.claimed, token.rows_per_day // _BLOCKS)
                try:
                    meter.claimed += await asyncio.to_thread(tokens.claim, self._engine, token, day, block)
                except sa.exc.SQLAlchemyError as error:
                    logger.error("a token's budget cannot be read: %s", reason(error))
                    said = "the token's budget cannot be read; try again"
                    raise Refusal(503, "log_unavailable", said, retry_after_s=2) from error
            if meter.claimed < rows:
                wait_s = 86400 - int(now) % 86400
                left = f"{meter.claimed} of today's are left"
                said = f"token {token.name!r} may ask {token.rows_per_day} rows a day, and {left}"
                raise Refusal(429, "budget_spent", f"{said}; the day ends at midnight UTC", retry_after_s=wait_s)
            meter.claimed -= rows

    def _meter(self, token: Token) -> _Meter:
        if (found := self._meters.get(token.sha256)) is None:
            full = max(1.0, _BURST_S * (token.rows_per_s or 0.0) / self._replicas)
            found = self._meters[token.sha256] = _Meter(full, self._clock())
        return found


def is_local(host: str) -> bool:
    """Whether only programs of this machine reach that address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
