"""The model of `serving.py` as MLflow serves it for pictures: base64 PNGs in, probabilities out (models from code)."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import mlflow
import numpy as np


class Pictures(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    def load_context(self, context: Any) -> None:
        import torch

        from models import artifact
        from models.task import find_task

        torch.set_num_threads(1)
        folder = Path(context.artifacts["weights"])
        self.task = find_task(artifact.read(folder)[1]["task_name"])
        self.model = artifact.load(folder, self.task)

    def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
        import torch

        from models.images import decode_png, to_tensor

        pictures = [
            decode_png(base64.b64decode(str(each)), self.task.input) for each in np.asarray(model_input).ravel()
        ]
        with torch.inference_mode():
            return self.model(to_tensor(np.stack(pictures))).softmax(dim=1).numpy()


mlflow.models.set_model(Pictures())
