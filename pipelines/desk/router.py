"""The desk's addresses: the page, sheets and votes, pictures, labels in and out. All of them want the site's token."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from pydantic import BaseModel, Field

from models.errors import BadInput
from pipelines.desk import entry, exchange
from pipelines.desk.entry import Seat
from pipelines.federated.queue import Progress, picture, progress
from pipelines.federated.site_tables import UNREADABLE
from pipelines.federated.votes import Sheet, take, undo, vote
from pipelines.serving_wire import Refusal
from pipelines.settings import Settings

RESERVED = "apsux"
"""Keys of the page itself: select all, pixels, later, undo, unreadable."""

STATIC = {"page.css": "text/css", "page.js": "text/javascript"}
FOREVER = {"Cache-Control": "private, max-age=31536000, immutable", "X-Content-Type-Options": "nosniff"}


class SheetBody(BaseModel):
    """beside: items that are on the page already; holding: one that the sheet must have."""

    beside: list[int] = Field([], max_length=4096)
    holding: int | None = None


class VotesBody(BaseModel):
    """votes: item → class index, or -1 for unreadable. action: names them; sent again, they count once."""

    action: str = Field(min_length=8, max_length=32)
    votes: dict[int, int] = Field(min_length=1, max_length=4096)


def keys_of(classes: tuple[str, ...]) -> list[str]:
    """The key of each class: its own name where all are single digits, else 1-9, 0, then letters; "" beyond those."""
    if all(len(name) == 1 and name.isdigit() for name in classes):
        return list(classes)
    letters = [letter for letter in "abcdefghijklmnopqrstuvwxyz" if letter not in RESERVED]
    keys = [*"1234567890", *letters]
    return [keys[i] if i < len(keys) else "" for i in range(len(classes))]


def create_router(settings: Settings, also: Callable[[str, str], str | None]) -> APIRouter:
    """The desk of every site of these settings. also: see `entry.finder`."""
    router, task = APIRouter(prefix="/desk"), settings.task
    find = entry.finder(settings, also)
    Seated = Annotated[Seat, Depends(entry.seated(find))]
    here = Path(__file__).parent

    @router.get("")
    def page(request: Request, site: str = "") -> Response:
        token = request.cookies.get(entry.cookie(site), "")
        if find(site, token) is None:
            return entry.login_page(site, "That token is not valid any more; enter another." if token else "")
        return HTMLResponse((here / "page.html").read_text(), headers=entry.HEADERS)

    @router.post("/login")
    def login(request: Request, site: Annotated[str, Form()] = "", token: Annotated[str, Form()] = "") -> Response:
        if not entry.from_here(request):
            raise Refusal(403, "elsewhere", "this form was sent from another page than the desk's; nothing was done")
        found = find(site, token.strip())
        if found is None:
            return entry.login_page(site, "This token does not open this site's desk. Ask the site's operator for one.")
        return entry.let_in(request, found, token.strip())

    @router.post("/logout")
    def logout(seat: Seated) -> Response:
        answer = RedirectResponse(f"/desk?site={seat.site}", 303)
        answer.delete_cookie(entry.cookie(seat.site), path="/desk")
        return answer

    @router.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in STATIC:
            raise Refusal(404, "not_found", f"the desk has no file {name}")
        headers = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}
        return Response((here / name).read_bytes(), media_type=STATIC[name], headers=headers)

    @router.get("/picture/{row_id}")
    def image(row_id: str, seat: Seated) -> Response:
        """A row's picture. Its name is a hash of its content, so a browser may keep it for ever."""
        png = picture(seat.database, row_id)
        if png is None:
            raise Refusal(404, "unknown_row", f"the queue of {seat.site} shows no row {row_id}")
        return Response(png, media_type="image/png", headers=FOREVER)

    @router.get("/api/desk")
    def desk(seat: Seated) -> dict[str, Any]:
        classes = [{"name": name, "key": key} for name, key in zip(task.classes, keys_of(task.classes), strict=True)]
        return {
            "site": seat.site,
            "annotator": seat.annotator,
            "task": task.name,
            "classes": classes,
            "progress": _counts(progress(seat.database, seat.annotator)),
        }

    @router.post("/api/sheet")
    def sheet(body: SheetBody, seat: Seated) -> dict[str, Any]:
        """The next sheet, reserved for this person; `sheet` is null where there is none for them."""
        found = take(seat.database, seat.annotator, body.beside, body.holding)
        return {"sheet": found and _sheet(found), "progress": _counts(progress(seat.database, seat.annotator))}

    @router.post("/api/votes")
    def votes(body: VotesBody, seat: Seated) -> dict[str, Any]:
        """Keep votes. What is refused (others were quicker) is listed with its reason; the rest is kept."""
        wrong = sorted({c for c in body.votes.values() if c != UNREADABLE and not 0 <= c < len(task.classes)})
        if wrong:
            raise Refusal(422, "invalid", f"there is no class {wrong[0]}; known are 0 to {len(task.classes) - 1}, "
                f"and {UNREADABLE} for unreadable")  # fmt: skip
        refused = vote(seat.database, seat.annotator, body.votes, body.action)
        return {"refused": refused, "progress": _counts(progress(seat.database, seat.annotator))}

    @router.post("/api/undo")
    def take_back(seat: Seated) -> dict[str, Any]:
        """Take back what this person did last; its items are theirs again."""
        items = undo(seat.database, seat.annotator)
        return {"items": items, "progress": _counts(progress(seat.database, seat.annotator))}

    @router.get("/api/labels")
    def labels_out(seat: Seated, format: exchange.Format = "csv") -> Response:
        text = exchange.write(seat.database, task.classes, format)
        kind = "text/csv; charset=utf-8" if format == "csv" else "application/json"
        return Response(text, media_type=kind, headers={"Cache-Control": "no-store"})

    @router.post("/api/labels")
    async def labels_in(request: Request, seat: Seated, format: exchange.Format = "csv") -> JSONResponse:
        """Votes from a file, all of them in the name of the token's owner; bad lines are listed, good ones taken."""
        text = (await request.body()).decode("utf-8-sig", "replace")
        try:
            taken = exchange.read(seat.database, task.classes, text, format, seat.annotator, trust_names=False)
        except BadInput as error:
            raise Refusal(422, "invalid", str(error)) from error
        return JSONResponse({"new": taken.new, "known": taken.known, "refused": list(taken.refused)})

    return router


def _sheet(sheet: Sheet) -> dict[str, Any]:
    return {
        "version": sheet.version,
        "cluster": sheet.cluster,
        "reason": sheet.reason,
        "items": [{"item": each.item, "row": each.row_id, "votes": each.votes} for each in sheet.items],
        "neighbours": sheet.neighbours,
        "until": sheet.until,
    }


def _counts(done: Progress) -> dict[str, int]:
    return vars(done) | {"open": done.open}
