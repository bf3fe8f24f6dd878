"""What `serving.py` compares the service with: a plain FastAPI handler, and the model that MLflow serves for pictures.

`python benchmarks/serving_peers.py PORT WEIGHTS` is the plain handler: the same model, the same decoding and the same
answer, one request at a time, no log. MLflow takes no picture, so for pictures its model decodes base64 itself.
"""

from __future__ import annotations

import sys
import uuid
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI, Request

from models import artifact
from models.images import to_tensor
from models.task import find_task
from pipelines import serving_wire as wire
from pipelines.serving_wire import PredictBody


def plain(folder: Path) -> Any:
    """The handler that one writes first."""
    task = find_task(artifact.read(folder)[1]["task_name"])
    model = artifact.load(folder, task)
    app = FastAPI()

    def answer(row: wire.Row) -> dict[str, Any]:
        with torch.inference_mode():
            shares = model(to_tensor(row.image[None])).softmax(dim=1)[0].numpy()
        best = int(shares.argmax())
        rounded = [round(float(share), 6) for share in shares]
        return {
            "prediction_id": str(uuid.uuid4()),
            "request_id": row.request_id,
            "prediction": best,
            "class": task.classes[best],
            "confidence": rounded[best],
            "probabilities": rounded,
            "model_version": 1,
        }

    @app.post("/predict")
    async def predict(body: PredictBody) -> dict[str, Any]:
        return answer(wire.rows_from_json(body, task.input)[0])

    @app.post("/predict/image")
    async def predict_image(request: Request, site: str, request_id: str | None = None) -> dict[str, Any]:
        return answer(wire.rows_from_files([await request.body()], task.input, site, None, [request_id])[0])

    return app


def save_mlflow_picture_model(folder: Path, weights: Path) -> None:
    """A python_function model that takes base64 PNGs."""
    import mlflow

    mlflow.pyfunc.save_model(
        str(folder), python_model=str(Path(__file__).with_name("serving_pictures.py")),
        artifacts={"weights": str(weights)}, pip_requirements=["torch"],
    )  # fmt: skip


def main() -> None:
    import uvicorn

    torch.set_num_threads(1)
    uvicorn.run(
        plain(Path(sys.argv[2])), host="127.0.0.1", port=int(sys.argv[1]), access_log=False, log_level="warning"
    )


if __name__ == "__main__":
    main()
