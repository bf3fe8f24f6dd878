"""Who may sit down: a token of the site, as a bearer of the API or in a cookie that only the desk's pages get.

The cookie is HttpOnly and SameSite=Strict, and a request that changes something must come from the desk's own pages:
browsers say where a request comes from, and one that says another place is refused.
"""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

import sqlalchemy as sa
from fastapi import Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from pipelines.federated.site_tables import open_database
from pipelines.federated.tokens import annotator_of
from pipelines.serving_wire import Refusal
from pipelines.settings import Settings

LOGGED_IN_S = 12 * 3600
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Seat:
    """A person at a site's desk, and the site's database."""

    site: str
    annotator: str
    database: sa.Engine


def finder(settings: Settings, also: Callable[[str, str], str | None]) -> Callable[[str, str], Seat | None]:
    """(site, token) → the seat, None for a wrong token and for a site that is not there: nobody learns which.

    also: (site, token) → who may sit there by a token of the service.
    """
    root = settings.folder / "sites"
    database = lru_cache(maxsize=256)(open_database)

    def find(site: str, token: str) -> Seat | None:
        if not token or not re.fullmatch(r"[\w][\w.-]{0,63}", site) or not (root / site).is_dir():
            return None
        found = database(root / site)
        annotator = annotator_of(found, token) or also(site, token)
        return (annotator and Seat(site, annotator, found)) or None

    return find


def seated(find: Callable[[str, str], Seat | None]) -> Callable[[Request, str], Seat]:
    """What every address of the API depends on."""

    def seat(request: Request, site: str) -> Seat:
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        token = bearer.strip() if scheme.lower() == "bearer" else request.cookies.get(cookie(site), "")
        if not bearer and request.method != "GET" and not from_here(request):
            raise Refusal(403, "elsewhere", "this request comes from another page than the desk's; it was not done")
        found = find(site, token)
        if found is None:
            refusal = Refusal(401, "no_token", f"{'that token is not valid' if token else 'a token is needed'} for "
                "this site; its operator makes one with `fedloop desk-token SITE --annotator NAME`")  # fmt: skip
            refusal.headers["WWW-Authenticate"] = "Bearer"
            raise refusal
        return found

    return seat


def cookie(site: str) -> str:
    """One cookie a site, so that somebody may sit at two desks."""
    return f"desk-{hashlib.sha256(site.encode()).hexdigest()[:12]}"


def from_here(request: Request) -> bool:
    """Whether a browser sent it from a page of this service, or no browser sent it."""
    fetched = request.headers.get("sec-fetch-site")
    if fetched is not None:
        return fetched in ("same-origin", "none")
    origin = request.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == request.headers.get("host")


def login_page(site: str, problem: str = "") -> Response:
    """The form that takes a token; 401, because whoever sees it has not shown one."""
    page = Path(__file__).with_name("login.html").read_text()
    filled = page.replace("{{site}}", html.escape(site)).replace("{{problem}}", html.escape(problem))
    return HTMLResponse(filled, 401, headers=HEADERS)


def let_in(request: Request, seat: Seat, token: str) -> Response:
    """On to the desk, with the cookie."""
    answer = RedirectResponse(f"/desk?site={seat.site}", 303)
    secure = request.url.scheme == "https"
    answer.set_cookie(
        cookie(seat.site), token, LOGGED_IN_S, path="/desk", httponly=True, samesite="strict", secure=secure
    )
    return answer
