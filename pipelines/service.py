"""The prediction service: HTTP in front of the champion and the traffic log.

In go images and delayed labels, out come predictions that stand in the log before they are answered. It follows the
registry's alias `champion` and swaps without dropping a request. Run it as `python -m pipelines.service`.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, MutableMapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import cache
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import Body, FastAPI, File, Form, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from models.errors import FedloopError
from monitoring.engines import engine_for
from monitoring.safety_net import SafetyNet
from monitoring.traffic import Conflict, Label, Prediction, TrafficLog, UnknownPrediction
from pipelines import serving_cases, serving_logs, serving_uploads
from pipelines import serving_described as described
from pipelines import serving_wire as wire
from pipelines.desk import router as desk
from pipelines.registry import Version
from pipelines.serving_access import Access, Caller
from pipelines.serving_batch import Batcher
from pipelines.serving_beside import Shadow
from pipelines.serving_door import Door
from pipelines.serving_follow import ChampionWatcher
from pipelines.serving_health import VERSION_HEADER, HealthCounter
from pipelines.serving_hot import answer, hot
from pipelines.serving_metrics import Metrics
from pipelines.serving_model import ServedModel
from pipelines.serving_wire import IMAGE_TYPES, FeedbackBody, ImagesQuery, Refusal, RequestId, Row
from pipelines.settings import Settings, load_settings

LOG_BUSY_MS = 2000
"""How long a request waits for another writer of an SQLite log before its row goes to the spool."""

TYPES = serving_cases.TYPES | {
    "/predict": ("application/json",),
    "/predict/image": IMAGE_TYPES,
    "/predict/images": ("multipart/form-data",),
    "/predictions": ("application/json",),
    "/feedback": ("application/json",),
}
_CODES = {400: "broken_request", 404: "not_found", 405: "method_not_allowed"}


def create_app(settings: Settings) -> Door:
    """The service for the settings' task. It starts without a champion, and says so until there is one."""
    task = settings.task
    log = _open_log(settings)
    net = SafetyNet(log, settings.spool)
    net.prepare()
    metrics = Metrics()
    metrics.watch(net)

    def swapped(served: ServedModel | None) -> None:
        metrics.swapped(served)
        _leave_the_program_alone()

    watcher = ChampionWatcher(settings, swapped)
    health = HealthCounter(log.engine, lambda: watcher.served.version.number if watcher.served else 0)

    def logged(rows: Sequence[Prediction]) -> None:
        metrics.logged(rows)
        health.logged(rows)
        shadow.offer(rows)

    def answered(path: str, status: int, seconds: float, version: int | None) -> None:
        metrics.answered(path, status, seconds)
        health.answered(path, status, seconds, version)

    shadow = Shadow(log.engine, lambda: watcher.served, metrics.beside, metrics.shed)
    batcher = Batcher(net, lambda: watcher.served, watcher.why_none, logged)

    access = Access(log.engine, settings.host, settings.service.replicas, settings.folder / "tokens.json")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        going = (batcher.run(), watcher.follow(), health.follow(), access.follow())
        tasks = [asyncio.create_task(each) for each in going]
        logging.getLogger("fedloop.service").info("%s", access.describe())
        yield
        # Here every request is answered already: the server waits for them before it ends the lifespan.
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        batcher.close()
        await asyncio.to_thread(shadow.close)
        net.close()
        log.close()

    # FastAPI's own pages of documentation load their scripts from elsewhere.
    app = FastAPI(title=f"fedloop: {task.name}", lifespan=lifespan, docs_url=None, redoc_url=None)
    _speak_with_one_voice(app)
    app.include_router(serving_cases.router(task, log, lambda: watcher.served))
    # The service's own health is that of the requests it answers; these rows it only takes.
    app.include_router(serving_uploads.router(settings, net, lambda: watcher.served, access, metrics.logged))
    app.include_router(desk.create_router(settings, access.annotator))

    async def predict(scope: MutableMapping[str, Any], rows: Sequence[Row]) -> Sequence[Prediction]:
        """Rows of one site, in the name of whoever passed the door."""
        caller: Caller = scope["caller"]
        caller.speaks_for(rows[0].site)
        await access.charge(caller, len(rows))
        return await batcher.predict(rows)

    @app.post(
        "/predict/images", openapi_extra=wire.described(ImagesQuery), responses=described.answers(task, many=True)
    )
    async def predict_images(
        request: Request,
        files: Annotated[list[UploadFile], File()],
        request_id: Annotated[list[RequestId] | None, Form()] = None,
    ) -> JSONResponse:
        """Predict on several image files (multipart; `request_id` as often as there are files, or never)."""
        query = wire.from_query(ImagesQuery, request.query_params)
        data = [await file.read() for file in files]
        rows = wire.rows_from_files(data, task.input, query.site, query.at, request_id or [None] * len(data))
        found = await predict(request.scope, rows)
        headers = {VERSION_HEADER: str(found[0].model_version)}
        return JSONResponse({"predictions": [answer(task, row) for row in found]}, headers=headers)

    @app.post("/feedback", openapi_extra=described.FEEDBACK, responses=described.ok(described.STORED))
    async def feedback(request: Request, body: Annotated[FeedbackBody, Body()]) -> JSONResponse:
        """Take delayed labels: one, or a list, which is taken whole or not at all."""
        items = body if isinstance(body, list) else [body]
        labels = [
            Label(
                item.prediction_id,
                wire.class_index(item.label, task.classes, i if isinstance(body, list) else None),
                item.source,
                item.at or time.time(),
            )
            for i, item in enumerate(items)
        ]
        said = await asyncio.to_thread(_store_labels, net, labels, request.scope["caller"])
        answers = [
            {"prediction_id": each.prediction_id, "status": status} for each, status in zip(labels, said, strict=True)
        ]
        return JSONResponse({"feedback": answers} if isinstance(body, list) else answers[0])

    described.add_hot_paths(app, task)

    @app.get("/docs", include_in_schema=False)
    async def documentation() -> Response:
        """What there is, as a page that needs nothing from elsewhere."""
        return HTMLResponse(described.page(app.openapi()), headers={"Content-Security-Policy": described.POLICY})

    @app.get("/healthz", responses=described.ok(described.ALIVE))
    async def alive() -> dict[str, Any]:
        """That it lives, and where rows go: into the log's database, or into the spool until that is back."""
        return {"status": "alive"} | net.said

    @app.get("/readyz", responses=described.ok(described.READY))
    async def ready() -> JSONResponse:
        """200 once a champion serves, with what hinders it to follow the alias and to reach the log's database."""
        if watcher.served is None:
            raise Refusal(503, "no_champion", watcher.why_none(), retry_after_s=2)
        return JSONResponse(
            {"status": "ready", "model_version": watcher.served.version.number} | _following(watcher) | net.said
        )

    @app.get("/model", responses=described.ok(described.model(task)))
    async def model() -> JSONResponse:
        if (served := watcher.served) is None:
            raise Refusal(503, "no_champion", watcher.why_none(), retry_after_s=2)
        return JSONResponse(
            {
                "name": settings.model_name,
                "version": served.version.number,
                "since": served.since,
                "tags": served.version.tags,
                "classes": task.classes,
                "input": {"height": task.input.height, "width": task.input.width, "channels": task.input.channels},
            }
            | _following(watcher)
        )

    @app.get("/metrics", response_class=PlainTextResponse, responses=described.METRICS)
    async def prometheus() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return Door(app, TYPES, answered, hot(task, predict), access)


def _following(watcher: ChampionWatcher) -> dict[str, str | None]:
    def told(refused: tuple[Version, str] | None) -> str | None:
        return refused and f"version {refused[0].number}: {refused[1]}"

    beside = watcher.served.beside if watcher.served else None
    return {
        "beside": None if beside is None else f"version {beside.model.version.number} ({beside.step})",
        "registry": watcher.problem or "reachable",
        "refused": told(watcher.refused),
        "refused_beside": told(watcher.refused_beside),
    }


def _store_labels(net: SafetyNet, labels: Sequence[Label], caller: Caller) -> Sequence[str]:
    try:
        if caller.site is not None:
            for site in net.log.sites_of([each.prediction_id for each in labels]):
                caller.speaks_for(site)
        return net.label_all(labels)
    except UnknownPrediction as error:
        raise Refusal(404, "unknown_prediction", str(error)) from error
    except Conflict as error:
        raise Refusal(409, "conflict", str(error)) from error
    except (sa.exc.SQLAlchemyError, OSError) as error:
        logging.getLogger("fedloop.service").error("a label cannot be written: %s", str(error).partition("\n")[0])
        raise Refusal(503, "log_unavailable", "the label could not be stored; try again", retry_after_s=2) from error


def _speak_with_one_voice(app: FastAPI) -> None:
    """Every error has the same body, whoever found it."""

    def say(refusal: Refusal) -> JSONResponse:
        return JSONResponse(refusal.body(), refusal.status, headers=refusal.headers)

    @app.exception_handler(Refusal)
    async def refused(_: Request, error: Refusal) -> JSONResponse:
        return say(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return say(wire.not_understood(error.errors()))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        message = {
            404: f"there is nothing at {request.url.path}; see /openapi.json for what there is",
            405: f"{request.url.path} does not take {request.method}",
        }.get(error.status_code, str(error.detail))
        refusal = Refusal(error.status_code, _CODES.get(error.status_code, "refused"), message)
        refusal.headers = dict(error.headers or {})
        return say(refusal)


def _open_log(settings: Settings) -> TrafficLog:
    log = TrafficLog(engine_for(settings.database_url), settings.images)
    if log.engine.dialect.name == "sqlite":
        # A monitor may wait half a minute for the log, a client should not.
        @sa.event.listens_for(log.engine, "connect")
        def impatient(connection: Any, _: Any) -> None:
            connection.execute(f"PRAGMA busy_timeout={LOG_BUSY_MS}")

    return log


def main() -> int:
    """Serve until SIGTERM; what has been asked by then is still answered."""
    # What the server raises again once it has shut down must not look like a crash; before, there is nothing to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        settings = load_settings()
        serving_logs.configure(settings.service.json_logs)
        settings.apply_environment()
        listener = _listen(settings.host, settings.ports.service, shared=settings.service.replicas > 1)
        app = create_app(settings)
    except FedloopError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 2

    import torch
    import uvicorn

    _keep_freed_memory()
    torch.set_num_threads(1)  # small models: more threads only wait for each other
    config = uvicorn.Config(app, access_log=False, log_config=None, timeout_graceful_shutdown=10, timeout_keep_alive=30)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("fedloop.service").info("listening on http://%s:%d", settings.host, settings.ports.service)
    uvicorn.Server(config).run(sockets=[listener])
    return 0


def _keep_freed_memory() -> None:
    """Tell glibc to hand no memory back after every picture: asking for it anew takes longer than packing the PNG."""
    with suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(-1, 64 * 2**20)  # M_TRIM_THRESHOLD
        libc.mallopt(-3, 32 * 2**20)  # M_MMAP_THRESHOLD


@cache
def _leave_the_program_alone() -> None:
    """Take what is imported and built out of Python's search for cyclic garbage: a million objects that stay, looked
    through again and again, took nearly as long as the predictions. Once, when the first model is there. Requests leave
    no cycles to speak of, so what they make is looked through more rarely, too.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def _listen(host: str, port: int, shared: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:  # every replica listens on the one port, and the system spreads the connections
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind((host, port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise FedloopError(
            f"the service cannot listen on {host}:{port} ({error.strerror}); "
            "stop what uses the port, or set another with FEDLOOP_PORTS__SERVICE"
        ) from error
    return listener


if __name__ == "__main__":
    sys.exit(main())
