"""The service's door: every request passes it before anything of its body is parsed.

It refuses who may not ask, what is too large, of another type than its address takes, or one too many; it counts and
times all, and gives every answer the id of its request.
A plain ASGI application around the others: one of Starlette's middlewares would have read the body by then.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from starlette.requests import ClientDisconnect

from pipelines.serving_access import Access
from pipelines.serving_health import VERSION_HEADER
from pipelines.serving_logs import HEADER, request_id
from pipelines.serving_wire import Refusal, to_json

MAX_BODY_BYTES = 8 * 2**20
MAX_IN_FLIGHT = 512

# A refused upload is read on for so long, and thrown away: a connection that is closed over unread bytes is reset,
# and the client would see that instead of the refusal.
_DRAIN_BYTES = 64 * 2**20
_DRAIN_S = 3.0
_VERSION = VERSION_HEADER.encode()

logger = logging.getLogger("fedloop.service")

Scope = dict[str, Any]
Message = dict[str, Any]
Receive = Callable[[], Any]
Send = Callable[[Message], Any]
OnAnswer = Callable[[str, int, float, int | None], None]


class Door:
    """types: the content types each path takes. on_answer(path, status, seconds, version) is called for every answer;
    version: of the model behind it, None where the answer names none.

    hot: applications that are asked instead of `app` where the path is theirs and something is posted. Whatever is
    behind the door finds its `serving_access.Caller` as "caller" in the scope.
    """

    def __init__(
        self,
        app: Any,
        types: Mapping[str, Sequence[str]],
        on_answer: OnAnswer,
        hot: Mapping[str, Any],
        access: Access,
    ) -> None:
        self._app, self._types, self._on_answer, self._hot, self._access = app, types, on_answer, hot, access
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status, read = 500, 0
        version: int | None = None
        headers = dict(scope["headers"])
        name = request_id(headers.get(b"x-request-id", b"").decode("latin-1"))

        async def counted_receive() -> Message:
            nonlocal read
            message: Message = await receive()
            read += len(message.get("body", b""))
            # To the application the client has gone, so it acts on no part of the body.
            return {"type": "http.disconnect"} if read > MAX_BODY_BYTES else message

        async def noted_send(message: Message) -> None:
            nonlocal status, version
            if read > MAX_BODY_BYTES:
                return
            if message["type"] == "http.response.start":
                status = message["status"]
                named = [value for key, value in message["headers"] if key == _VERSION]
                version = int(named[0]) if named else None
                message = message | {"headers": [*message["headers"], (HEADER.encode(), name.encode())]}
            await send(message)

        self._in_flight += 1
        try:
            self._check(scope, headers)
            with suppress(ClientDisconnect):
                app = self._hot.get(scope["path"]) if scope["method"] == "POST" else None
                await (app or self._app)(scope, counted_receive, noted_send)
            if read > MAX_BODY_BYTES:
                raise _too_large()
        except Refusal as refusal:
            status = refusal.status
            await _refuse(refusal, receive, send, name)
        except Exception as error:
            if status != 500:
                raise  # in the middle of an answer
            logger.exception("%s %s failed", scope["method"], scope["path"])
            said = f"the service failed ({type(error).__name__}); its log says more"
            await _refuse(Refusal(500, "internal", said), receive, send, name)
        finally:
            self._in_flight -= 1
            took_s = time.perf_counter() - began
            self._on_answer(scope["path"], status, took_s, version)
            if status >= 500 or status in (401, 403, 429):
                about = {
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": status,
                    "ms": round(took_s * 1e3, 1),
                }
                level = logging.WARNING if status >= 500 else logging.INFO
                logger.log(level, "%s %s: %d", scope["method"], scope["path"], status, extra={"about": about})

    def _check(self, scope: Scope, headers: Mapping[bytes, bytes]) -> None:
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > MAX_BODY_BYTES:
            raise _too_large()
        if self._in_flight > MAX_IN_FLIGHT:
            raise Refusal(503, "overloaded", "too many requests are open; try again in a second", retry_after_s=1)
        scope["caller"] = self._access.admit(scope["path"], headers.get(b"authorization", b"").decode("latin-1"))
        if scope["path"] in self._hot and scope["method"] != "POST":
            refusal = Refusal(405, "method_not_allowed", f"{scope['path']} does not take {scope['method']}")
            refusal.headers["Allow"] = "POST"
            raise refusal
        takes = self._types.get(scope["path"])
        given = headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
        if takes and scope["method"] == "POST" and given not in takes:
            said = f"the content type is {given!r}" if given else "there is no content type"
            raise Refusal(415, "unknown_content_type", f"{said}; {scope['path']} takes {' or '.join(takes)}")


def _too_large() -> Refusal:
    return Refusal(413, "too_large", f"the body is larger than {MAX_BODY_BYTES // 2**20} MB; send smaller batches")


async def _refuse(refusal: Refusal, receive: Receive, send: Send, name: str) -> None:
    body = to_json(refusal.body())
    length = str(len(body))
    headers = {"content-type": "application/json", "content-length": length, "connection": "close", HEADER: name}
    encoded = [(k.lower().encode(), v.encode()) for k, v in (headers | refusal.headers).items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": encoded})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    left, until = _DRAIN_BYTES, time.monotonic() + _DRAIN_S
    more = True
    while more and left > 0 and time.monotonic() < until:
        message = await receive()
        more = bool(message.get("more_body", False))
        left -= len(message.get("body", b""))
    await send({"type": "http.response.body", "body": b"", "more_body": False})
