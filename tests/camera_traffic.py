"""Traffic of five hospitals with cameras of their own, small enough for tests: digits, a linear model, a real log."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression

from models.camera import Camera, draw_camera, low_light
from models.digits import TASK
from models.embedding import nearest_centroid
from models.images import Images, content_hash, encode_png
from models.quality import QUALITY_COLUMNS, quality
from monitoring.drift import clean
from monitoring.traffic import Prediction, TrafficLog
from pipelines.federated.store import SiteStore
from pipelines.settings import Settings

START = 1_700_000_000.0


@dataclass
class CameraTraffic:
    """Five sites whose pictures and label mix differ; half of the reference rows trained the model, as in life."""

    seed: int = 0
    sites: tuple[str, ...] = ("site-1", "site-2", "site-3", "site-4", "site-5")
    rng: np.random.Generator = field(init=False)
    sent: int = 0

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        data = TASK.load()
        self.cameras: dict[str, Camera] = {site: draw_camera(self.rng, 1) for site in self.sites}
        self.mix = 0.8 * self.rng.dirichlet(np.ones(len(self.sites)), size=10) + 0.2 / len(self.sites)
        dev = np.stack(data.development.images), np.array(data.development.labels)
        evaluation = np.stack(data.evaluation.images), np.array(data.evaluation.labels)
        self.live = np.stack(data.live.images), np.array(data.live.labels)
        self.live_site = self._assign(self.live[1])
        site = np.concatenate([self._assign(dev[1]), self._assign(evaluation[1])])
        images = self._seen(np.concatenate([dev[0], evaluation[0]]), site)
        labels = np.concatenate([dev[1], evaluation[1]])
        half = self.rng.permutation(len(dev[1]))[:500]
        self.model = LogisticRegression(C=0.3, max_iter=300).fit(_flat(images[half]), labels[half])
        clusters = KMeans(50, n_init=1, random_state=0).fit(TASK.embed(images[: len(dev[1])]))
        self.centroids = clusters.cluster_centers_.astype(np.float64)
        frame = self.columns(images)
        self.reference = {s: frame[site == s].reset_index(drop=True) for s in self.sites}

    def _assign(self, labels: NDArray[np.int64]) -> NDArray[np.str_]:
        return np.array([self.rng.choice(self.sites, p=self.mix[label]) for label in labels])

    def _seen(self, images: Images, site: NDArray[np.str_]) -> Images:
        out = images.copy()
        for name, camera in self.cameras.items():
            out[site == name] = camera(images[site == name])
        return out

    def columns(self, images: Images) -> pd.DataFrame:
        """What a reference file holds of these pictures."""
        probabilities = self.model.predict_proba(_flat(images))
        return quality(images).assign(
            embedding_distance=nearest_centroid(TASK.embed(images), self.centroids)[1],
            confidence=probabilities.max(axis=1),
            prediction=probabilities.argmax(axis=1),
        )

    def pictures(
        self, rows: int, dark: float = 0.0, at_sites: Sequence[str] | None = None, only: Sequence[str] | None = None
    ) -> tuple[Images, NDArray[np.str_], NDArray[np.int64]]:
        """rows of live traffic: pictures, sites, labels. dark at at_sites (all); only: the sites that send at all."""
        pool = np.flatnonzero(np.isin(self.live_site, list(only or self.sites)))
        index = self.rng.choice(pool, size=rows)
        site = self.live_site[index]
        images = self._seen(self.live[0][index], site)
        hit = np.isin(site, list(at_sites or self.sites))
        if dark:
            images[hit] = low_light(images[hit], dark, self.rng)
        return images, site, self.live[1][index]

    def window(self, rows: int = 250, **kind: object) -> tuple[pd.DataFrame, NDArray[np.str_]]:
        """A window as the statistics take it, without a log."""
        images, site, _ = self.pictures(rows, **kind)  # type: ignore[arg-type]
        return clean(self.columns(images)), site

    def install(self, settings: Settings, version: int = 1) -> None:
        """Write the references and the data summary of a version where the monitor looks for them."""
        for site, table in self.reference.items():
            SiteStore(settings.folder / "sites" / site).write_reference(str(version), table)
        folder = settings.folder / "models" / str(version)
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / "summary.npz", centroids=self.centroids)

    def send(
        self, log: TrafficLog, rows: int, version: int = 1, every_s: float = 0.1, labels: bool = False, **kind: object
    ) -> list[str]:
        """Log rows as the service does; returns their prediction ids."""
        images, site, truth = self.pictures(rows, **kind)  # type: ignore[arg-type]
        table, made = self.columns(images), []
        probabilities = self.model.predict_proba(_flat(images))
        for i in range(rows):
            png = encode_png(images[i])
            self.sent += 1
            made.append(
                Prediction(
                    prediction_id=str(uuid.UUID(int=self.rng.integers(2**63).item())),
                    request_id=None,
                    site=str(site[i]),
                    at=START + self.sent * every_s,
                    logged_at=START + self.sent * every_s,
                    model_version=version,
                    png=png,
                    image_hash=content_hash(png),
                    prediction=int(table["prediction"].iloc[i]),
                    confidence=float(table["confidence"].iloc[i]),
                    probabilities=probabilities[i].tolist(),
                    quality=[float(table[name].iloc[i]) for name in QUALITY_COLUMNS],
                )
            )
        log.record(made)
        ids = [each.prediction_id for each in made]
        if labels:
            for key, label in zip(ids, truth, strict=True):
                log.label(key, int(label), "truth", START)
        return ids


def _flat(images: Images) -> NDArray[np.float64]:
    return images.reshape(len(images), -1) / 255.0
