"""The prediction service: HTTP in front of the champion and the traffic log.

In go images and delayed labels, out come predictions that stand in the log before they are answered. It follows the
registry's alias `champion` and swaps without dropping a request. Run it as `python -m pipelines.service`.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import Body, FastAPI, File, Form, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from models.errors import FedloopError
from monitoring.traffic import Conflict, Label, Prediction, TrafficLog, UnknownPrediction
from pipelines import serving_cases
from pipelines import serving_wire as wire
from pipelines.desk import router as desk
from pipelines.serving_batch import Batcher
from pipelines.serving_beside import Shadow
from pipelines.serving_door import Door
from pipelines.serving_follow import ChampionWatcher
from pipelines.serving_health import VERSION_HEADER, HealthCounter
from pipelines.serving_metrics import Metrics
from pipelines.serving_wire import IMAGE_TYPES, FeedbackBody, ImageQuery, ImagesQuery, PredictBody, Refusal, RequestId
from pipelines.settings import Settings, load_settings

LOG_BUSY_MS = 5000
"""How long a request waits for another writer of an SQLite log before it is refused."""

TYPES = serving_cases.TYPES | {
    "/predict": ("application/json",),
    "/predict/image": IMAGE_TYPES,
    "/predict/images": ("multipart/form-data",),
    "/feedback": ("application/json",),
}
_CODES = {400: "broken_request", 404: "not_found", 405: "method_not_allowed"}


def create_app(settings: Settings) -> FastAPI:
    """The service for the settings' task. It starts without a champion, and says so until there is one."""
    task = settings.task
    log = _open_log(settings)
    metrics = Metrics()
    watcher = ChampionWatcher(settings, metrics.swapped)
    health = HealthCounter(log.engine, lambda: watcher.served.version.number if watcher.served else 0)

    def logged(rows: Sequence[Prediction]) -> None:
        metrics.logged(rows)
        health.logged(rows)
        shadow.offer(rows)

    def answered(path: str, status: int, seconds: float, version: int | None) -> None:
        metrics.answered(path, status, seconds)
        health.answered(path, status, seconds, version)

    shadow = Shadow(log.engine, lambda: watcher.served, metrics.beside, metrics.shed)
    batcher = Batcher(log, lambda: watcher.served, watcher.why_none, logged)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(batcher.run()), asyncio.create_task(watcher.follow())]
        tasks.append(asyncio.create_task(health.follow()))
        yield
        # Here every request is answered already: the server waits for them before it ends the lifespan.
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        batcher.close()
        await asyncio.to_thread(shadow.close)
        log.close()

    # The documentation pages would load their scripts from elsewhere; /openapi.json stays.
    app = FastAPI(title=f"fedloop: {task.name}", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(Door, types=TYPES, on_answer=answered)
    _speak_with_one_voice(app)
    app.include_router(serving_cases.router(task, log, lambda: watcher.served))
    app.include_router(desk.create_router(settings))

    def answer(row: Prediction) -> dict[str, Any]:
        return {
            "prediction_id": row.prediction_id,
            "request_id": row.request_id,
            "prediction": None if row.abstained else row.prediction,
            "class": None if row.abstained else task.classes[row.prediction],
            "abstained": row.abstained,
            "confidence": row.confidence,
            "probabilities": row.probabilities,
            "model_version": row.model_version,
        }

    def respond(rows: Sequence[Prediction], listed: bool) -> JSONResponse:
        answers = [answer(row) for row in rows]
        headers = {VERSION_HEADER: str(rows[0].model_version)}
        return JSONResponse({"predictions": answers} if listed else answers[0], headers=headers)

    @app.post("/predict")
    async def predict(body: PredictBody) -> JSONResponse:
        """Predict on one image (`pixels`) or several (`instances`)."""
        rows = await batcher.predict(wire.rows_from_json(body, task.input))
        return respond(rows, listed=body.instances is not None)

    @app.post("/predict/image", openapi_extra=wire.described(ImageQuery))
    async def predict_image(request: Request) -> JSONResponse:
        """Predict on one image file, sent as the body."""
        query = wire.from_query(ImageQuery, request.query_params)
        rows = wire.rows_from_files([await request.body()], task.input, query.site, query.at, [query.request_id])
        return respond(await batcher.predict(rows), listed=False)

    @app.post("/predict/images", openapi_extra=wire.described(ImagesQuery))
    async def predict_images(
        request: Request,
        files: Annotated[list[UploadFile], File()],
        request_id: Annotated[list[RequestId] | None, Form()] = None,
    ) -> JSONResponse:
        """Predict on several image files (multipart; `request_id` as often as there are files, or never)."""
        query = wire.from_query(ImagesQuery, request.query_params)
        data = [await file.read() for file in files]
        rows = wire.rows_from_files(data, task.input, query.site, query.at, request_id or [None] * len(data))
        return respond(await batcher.predict(rows), listed=True)

    @app.post("/feedback")
    async def feedback(body: Annotated[FeedbackBody, Body()]) -> JSONResponse:
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
        said = await asyncio.to_thread(_store_labels, log, labels)
        answers = [
            {"prediction_id": each.prediction_id, "status": status} for each, status in zip(labels, said, strict=True)
        ]
        return JSONResponse({"feedback": answers} if isinstance(body, list) else answers[0])

    @app.get("/healthz")
    async def alive() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz")
    async def ready() -> JSONResponse:
        """200 once a champion serves, with what hinders it to follow the alias."""
        if watcher.served is None:
            raise Refusal(503, "no_champion", watcher.why_none(), retry_after_s=2)
        return JSONResponse({"status": "ready", "model_version": watcher.served.version.number} | _following(watcher))

    @app.get("/model")
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

    @app.get("/metrics")
    async def prometheus() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return app


def _following(watcher: ChampionWatcher) -> dict[str, str | None]:
    refused, beside = watcher.refused or watcher.refused_beside, watcher.served.beside if watcher.served else None
    return {
        "beside": None if beside is None else f"version {beside.model.version.number} ({beside.step})",
        "registry": watcher.problem or "reachable",
        "refused": refused and f"version {refused[0].number}: {refused[1]}",
    }


def _store_labels(log: TrafficLog, labels: Sequence[Label]) -> Sequence[str]:
    try:
        return log.label_all(labels)
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
        broken = error.errors()[0]["type"] == "json_invalid"
        said = wire.sentence(error.errors())
        return say(Refusal(400, "broken_json", said) if broken else Refusal(422, "invalid", said))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        message = {
            404: f"there is nothing at {request.url.path}; see /openapi.json for what there is",
            405: f"{request.url.path} does not take {request.method}",
        }.get(error.status_code, str(error.detail))
        refusal = Refusal(error.status_code, _CODES.get(error.status_code, "refused"), message)
        refusal.headers = dict(error.headers or {})
        return say(refusal)

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        return say(Refusal(500, "internal", f"the service failed ({type(error).__name__}); its log says more"))


def _open_log(settings: Settings) -> TrafficLog:
    log = TrafficLog.open(settings.database_url, settings.images)
    if log.engine.dialect.name == "sqlite":
        # A monitor may wait half a minute for the log, a client should not.
        @sa.event.listens_for(log.engine, "connect")
        def impatient(connection: Any, _: Any) -> None:
            connection.execute(f"PRAGMA busy_timeout={LOG_BUSY_MS}")

        log.engine.dispose()
    return log


def main() -> int:
    """Serve until SIGTERM; what has been asked by then is still answered."""
    # What the server raises again once it has shut down must not look like a crash; before, there is nothing to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        settings = load_settings()
        settings.apply_environment()
        listener = _listen(settings.host, settings.ports.service)
        app = create_app(settings)
    except FedloopError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 2

    import torch
    import uvicorn

    torch.set_num_threads(1)  # small models: more threads only wait for each other
    config = uvicorn.Config(app, access_log=False, log_config=None, timeout_graceful_shutdown=10, timeout_keep_alive=30)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("fedloop.service").info("listening on http://%s:%d", settings.host, settings.ports.service)
    uvicorn.Server(config).run(sockets=[listener])
    return 0


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
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
