"""A site's own store: snapshots, quarantine, truth, annotations, labels and references. It never leaves the site.

Layout under `<folder>/sites/<site>/`:

    snapshots/<id>.parquet, <id>.json   validated rows and their manifest, named by their content
    quarantine/<digest>.parquet         rows that were refused, with row number and reason
    site.db                             the archive, the annotations, doubted labels, the queue: see site_tables.py
    labels/<labelling>.parquet          row, label, weight, how (bought | spread): what one training run learns from
    reference/<version>.parquet         what a monitor compares this site's traffic with
    reports/errors-<version>.html, .json  where a version errs here and why, with pictures
    counted/<version>.json              which snapshots a monitor's histograms have counted
    spaces/<name>.npz                   embedded rows of the last clusterings: row ids and features
    memory/<run>/<round>.safetensors    what a rule or stage keeps here between the rounds of a run
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import sqlalchemy as sa
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save

from models.errors import BadInput, FedloopError, Missing
from models.images import ImageInput, Images, decode_png
from pipelines.federated.files import digest, write_atomically
from pipelines.federated.site_tables import ANNOTATIONS, ARCHIVE, open_database, writing

Split = Literal["train", "evaluation"]


@dataclass(frozen=True)
class Manifest:
    """What a snapshot holds. `id` is a hash of its rows, so the same rows are the same snapshot."""

    id: str
    task: str
    site: str
    split: Split
    source: str
    rows: int
    quarantined: int
    schema: dict[str, str]
    sha256: str
    parent: str | None


MEMORIES_KEPT = 12
"""Rounds of which a site keeps its memory, so that a server can go back to one of its last checkpoints."""


SPACES_KEPT = 4
"""Embedded row sets that a site keeps: those of one labelling, before and after projection, and of the one before."""


class SiteStore:
    """The store of one site, in a folder of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def site(self) -> str:
        return self.root.name

    @cached_property
    def database(self) -> sa.Engine:
        return open_database(self.root)

    # -- snapshots --------------------------------------------------------------------------------------------

    def has(self, snapshot: str) -> bool:
        """Whether the snapshot is here, whole and unchanged."""
        if not (self.root / "snapshots" / f"{snapshot}.json").is_file():
            return False
        try:
            self._checked(self.manifest(snapshot))
        except FedloopError:
            return False
        return True

    def write(self, manifest: Manifest, rows: pd.DataFrame) -> Manifest:
        """Keep a snapshot; the manifest goes last, so a snapshot that has one is whole."""
        path = self._parquet("snapshots", manifest.id, rows)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        whole = Manifest(**(asdict(manifest) | {"sha256": digest}))
        write_atomically(path.with_suffix(".json"), json.dumps(asdict(whole), indent=2).encode())
        return whole

    def manifest(self, snapshot: str) -> Manifest:
        """The manifest of a snapshot.

        Raises:
            Missing: this site has no such snapshot.
        """
        path = self.root / "snapshots" / f"{snapshot}.json"
        if not path.is_file():
            raise Missing(f"site {self.site} has no snapshot {snapshot} ({path}); run `fedloop ingest` first")
        return Manifest(**json.loads(path.read_text()))

    def manifests(self) -> list[Manifest]:
        return [self.manifest(path.stem) for path in sorted((self.root / "snapshots").glob("*.json"))]

    def rows(self, snapshots: Sequence[str], split: Split) -> pd.DataFrame:
        """The rows of those snapshots that belong to a split: row_id, png, snapshot and the quality columns.

        Raises:
            Missing: a snapshot is not there.
            BadInput: a snapshot's file is not the one its manifest describes.
        """
        from pyarrow.parquet import ParquetFile

        frames: list[pd.DataFrame] = []
        for snapshot in snapshots:
            manifest = self.manifest(snapshot)
            if manifest.split != split:
                continue
            # Not pandas.read_parquet: it takes three times as long, and a site gets a snapshot with every retraining.
            table = ParquetFile(io.BytesIO(self._checked(manifest))).read(use_threads=False)
            frame: pd.DataFrame = table.to_pandas()
            frames.append(frame.assign(snapshot=snapshot))
        if not frames:
            return pd.DataFrame({"row_id": [], "png": [], "snapshot": []})
        return pd.concat(frames, ignore_index=True).drop_duplicates("row_id", ignore_index=True)

    def _checked(self, manifest: Manifest) -> bytes:
        path = self.root / "snapshots" / f"{manifest.id}.parquet"
        if not path.is_file():
            raise Missing(f"{path} is gone; restore it or ingest its source again")
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != manifest.sha256:
            raise BadInput(f"{path} was changed after it was written; restore it or ingest its source again")
        return content

    def deposit(self, labels: Mapping[str, int]) -> None:
        """Put what a row really shows into the site's archive (row_id → label); the first word stands."""
        table = [{"row_id": row, "label": int(label)} for row, label in labels.items()]
        if table:
            with writing(self.database) as connection:
                connection.execute(sa.insert(ARCHIVE).prefix_with("OR IGNORE"), table)

    def truth(self, row_ids: Iterable[str]) -> pd.Series:
        """row_id → label (NA where unknown), for an annotator or an evaluation. Training never asks the archive."""
        with self.database.connect() as connection:
            known = {row.row_id: row.label for row in connection.execute(sa.select(ARCHIVE))}
        asked = list(row_ids)
        return pd.Series([known.get(row) for row in asked], index=asked, dtype="Int64")

    def refuse(self, source: str, refused: pd.DataFrame) -> None:
        """Keep what was not ingested: row number in its source, reason. The same refusals are kept once."""
        if len(refused):
            table = refused.assign(source=source)
            self._parquet("quarantine", digest(table.to_dict("list")), table)

    def quarantine(self) -> pd.DataFrame:
        """Every refused row: row, reason, source."""
        frames = [pd.read_parquet(path) for path in sorted((self.root / "quarantine").glob("*.parquet"))]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame({"row": [], "reason": [], "source": []})

    # -- labels -----------------------------------------------------------------------------------------------

    def annotations(self) -> dict[str, int]:
        """row_id → label, everything ever paid for at this site."""
        with self.database.connect() as connection:
            return {row.row_id: row.label for row in connection.execute(sa.select(ANNOTATIONS))}

    def write_labels(self, labelling: str, table: pd.DataFrame) -> None:
        """What one training run learns from: row_id, label, weight, how."""
        self._parquet("labels", labelling, table)

    def has_labels(self, labelling: str) -> bool:
        return (self.root / "labels" / f"{labelling}.parquet").is_file()

    def labels(self, labelling: str) -> pd.DataFrame:
        if not self.has_labels(labelling):
            raise Missing(f"site {self.site} has no labelling {labelling}; run the labelling step first")
        return pd.read_parquet(self.root / "labels" / f"{labelling}.parquet")

    # -- spaces -----------------------------------------------------------------------------------------------

    def write_space(self, name: str, row_ids: Sequence[str], features: NDArray[np.float32]) -> None:
        """Keep embedded rows, features [n, d], until newer ones push them out."""
        buffer = io.BytesIO()
        np.savez(buffer, row_ids=np.asarray(row_ids, dtype="U32"), features=features)
        write_atomically(self.root / "spaces" / f"{name}.npz", buffer.getvalue())
        paths = sorted((self.root / "spaces").glob("*.npz"), key=lambda path: path.stat().st_mtime_ns)
        for path in paths[:-SPACES_KEPT]:
            path.unlink()

    def space(self, name: str) -> tuple[list[str], NDArray[np.float32]]:
        """Row ids and features [n, d] of a space.

        Raises:
            Missing: it was never made here, or newer ones pushed it out.
        """
        path = self.root / "spaces" / f"{name}.npz"
        if not path.is_file():
            raise Missing(f"site {self.site} has no embedded rows {name} (any more); run the labelling step again")
        kept = np.load(path)
        return kept["row_ids"].tolist(), kept["features"]

    # -- memory -----------------------------------------------------------------------------------------------

    def remember(
        self, run: str, round_number: int, tensors: Mapping[str, torch.Tensor], abandoned: Collection[int] = ()
    ) -> None:
        """Keep a rule's or stage's vectors after a round. Some rounds before stay for a server that goes back to them.

        abandoned: earlier rounds that had no effect.
        """
        folder = self.root / "memory" / run
        # Copies: the format refuses tensors that share their memory, and a rule may keep one under two names.
        data = save({name: tensor.clone() for name, tensor in tensors.items()})
        write_atomically(folder / f"{round_number:06d}.safetensors", data)
        paths = sorted(folder.glob("*.safetensors"))
        # A round after this one is of a future that the server took back: it will be done again.
        lasting = [path for path in paths if int(path.stem) <= round_number and int(path.stem) not in abandoned]
        first, kept = lasting[:-MEMORIES_KEPT][:1], lasting[-MEMORIES_KEPT:]
        for path in first:
            path.write_bytes(b"")  # emptied, it says that there was something before those that are kept
        for path in set(paths) - {*first, *kept}:
            path.unlink()

    def recall(self, run: str, before: int, abandoned: Collection[int] = ()) -> dict[str, torch.Tensor]:
        """What was kept last before a round, without `abandoned` ones: a round done again starts as it did.

        Raises:
            Missing: the server went back to a round of which the site's memory is not kept any more.
        """
        paths = sorted((self.root / "memory" / run).glob("*.safetensors"), reverse=True)
        earlier = (path for path in paths if int(path.stem) < before and int(path.stem) not in abandoned)
        newest = next(earlier, None)
        if newest is not None and newest.stat().st_size == 0:
            raise Missing(
                f"site {self.site} no longer has what it kept before round {before} of run {run}: a server may go back "
                f"{MEMORIES_KEPT - 1} rounds; remove the run's checkpoints and train it from the start"
            )
        return {} if newest is None else load_file(newest)

    # -- references -------------------------------------------------------------------------------------------

    def write_reference(self, version: str, table: pd.DataFrame) -> None:
        self._parquet("reference", version, table)

    def reference(self, version: str) -> pd.DataFrame:
        path = self.root / "reference" / f"{version}.parquet"
        if not path.is_file():
            raise Missing(f"site {self.site} has no reference for version {version} (looked for {path})")
        return pd.read_parquet(path)

    # -- errors -----------------------------------------------------------------------------------------------

    def report(self, version: str, kind: str = "html") -> Path:
        """Where the page on a version's errors lies, or (`json`) what it shows as data."""
        return self.root / "reports" / f"errors-{version}.{kind}"

    def _parquet(self, kind: str, name: str, table: pd.DataFrame) -> Path:
        path = self.root / kind / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        table.to_parquet(partial, index=False)
        partial.replace(path)
        return path


def stack_images(pngs: Iterable[bytes], schema: ImageInput) -> Images:
    """uint8 [n, height, width, channels] from PNG bytes."""
    images = [decode_png(png, schema) for png in pngs]
    return np.stack(images) if images else np.zeros((0, *schema.shape), dtype=np.uint8)
