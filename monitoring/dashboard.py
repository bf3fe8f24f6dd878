"""The Evidently workspace: one project per registered model, one snapshot per window and scope, and its panels.

In: Evidently's reports and our own figures of a window. Out: files that `evidently ui` shows. The UI keeps every
snapshot in memory and answers 500 for all projects when one file is broken, so what is written here is small, whole
(moved in from outside the workspace, which its watcher takes for a new file), bounded in number, and checked at start.
A snapshot's name begins with its window's first seq: a window that is written twice is the same file.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monitoring.drift import COLUMNS, OVERALL, ScopeDrift

if TYPE_CHECKING:
    from evidently.core.report import Snapshot
    from evidently.core.serialization import SnapshotModel
    from evidently.legacy.model.widget import BaseWidgetInfo

FIGURE = "evidently:metric_v2:FedloopFigure"
PERFORMANCE = "performance"
_BIG_BYTES = 100_000  # stripped snapshots have about 15 kB, those with plots 500 kB
_SERIES = 8  # lines that a panel of sites can show before it is a tangle


@dataclass(frozen=True)
class Figure:
    """One number of ours on the dashboard: a series is what has the same name and the same `of`."""

    name: str
    of: str
    value: float


def figures_of(drift: ScopeDrift, shares: Mapping[str, float]) -> list[Figure]:
    """The figures of one scope of a window. shares: of each class among its predictions."""
    exceeding = sum(column.ratio > 1.0 for column in drift.columns) / max(len(drift.columns), 1)
    figures = [Figure("drifted share", drift.scope, exceeding), Figure("rows", drift.scope, float(drift.rows))]
    figures += [Figure("drift", column.column, column.ratio) for column in drift.columns]
    figures += [Figure("drift", "threshold", 1.0)]
    return figures + [Figure("predicted share", name, share) for name, share in shares.items()]


class Dashboard:
    """The project of one registered model in a workspace."""

    def __init__(self, workspace: Path, model_name: str) -> None:
        self.workspace = workspace.absolute()
        self.model_name = model_name
        self.project = uuid.uuid5(uuid.NAMESPACE_URL, f"fedloop/{model_name}")

    @property
    def snapshots(self) -> Path:
        return self.workspace / str(self.project) / "snapshots"

    def ensure(self, title: str, sites: Sequence[str], classes: Sequence[str], errors: str = "") -> None:
        """The project with its panels; written where it is missing, or other than it should be.

        errors: why the model errs and where to read more, for a panel of its own; empty: none.
        """
        from evidently.sdk.models import ProjectModel

        project = ProjectModel(id=self.project, name=self.model_name, description=title)
        panels = _panels(self.model_name, list(sites)[:_SERIES], list(classes), errors)
        home = self.workspace / str(self.project)
        # `listdir` of the UI fails on a project without this folder.
        self.snapshots.mkdir(parents=True, exist_ok=True)
        for name, wanted in (("dashboard.json", panels), ("metadata.json", project.dict())):
            if _read(home / name) != json.loads(json.dumps(wanted, default=str)):
                self._put(home / name, wanted)

    def write(
        self,
        from_seq: int,
        scope: str,
        at: float,
        figures: Iterable[Figure],
        *,
        report: Snapshot | None = None,
        full: bool = False,
        metadata: Mapping[str, str] | None = None,
    ) -> Path:
        """Keep one scope of a window. full: with the report's plots, which cost 40 times the space."""
        kind = scope if scope in (OVERALL, PERFORMANCE) else "site"
        tags = [self.model_name, kind, *([scope] if kind == "site" else [])]
        model = snapshot_model(f"{scope}, rows from {from_seq}", at, figures, tags, metadata or {}, report, full)
        path = self.snapshots / f"{self._name(from_seq, scope)}.json"
        self._put(path, model.dict())
        return path

    def metadata(self, from_seq: int, scope: str) -> dict[str, str]:
        """What was written with that snapshot; empty where there is none."""
        found = _read(self.snapshots / f"{self._name(from_seq, scope)}.json")
        return dict(found.get("metadata", {})) if found else {}

    def retain(self, windows: int, full: int) -> int:
        """Drop all but the newest windows, and the plots of all but the newest full reports; how many files changed."""
        files = sorted(self.snapshots.glob("*.json"), key=lambda path: path.name)
        seqs = sorted({path.name[:13] for path in files})
        dropped = [path for path in files if path.name[:13] not in seqs[-windows:]]
        big = [path for path in files if path not in dropped and path.stat().st_size > _BIG_BYTES]
        for path in dropped:
            path.unlink(missing_ok=True)
        for path in big[:-full]:
            self._put(path, strip(_parse(path)).dict())
        return len(dropped) + len(big[:-full])

    def clear(self) -> None:
        """Forget every window of this model, as a rehearsal does before it begins."""
        for path in self.snapshots.glob("*.json"):
            path.unlink(missing_ok=True)

    def _name(self, from_seq: int, scope: str) -> uuid.UUID:
        end = int.from_bytes(hashlib.sha256(f"{self.model_name}/{scope}".encode()).digest()[:10], "big")
        return uuid.UUID(int=(from_seq << 80) | end)

    def _put(self, path: Path, content: Mapping[str, Any]) -> None:
        from evidently.legacy.utils import NumpyEncoder

        outside = self.workspace.with_name(f".{self.workspace.name}.partial")
        outside.mkdir(parents=True, exist_ok=True)
        partial = outside / f"{uuid.uuid4().hex}-{path.name}"
        try:
            partial.write_text(json.dumps(content, cls=NumpyEncoder))
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def snapshot_model(
    name: str,
    at: float,
    figures: Iterable[Figure],
    tags: Sequence[str],
    metadata: Mapping[str, str],
    report: Snapshot | None = None,
    full: bool = False,
) -> SnapshotModel:
    """A report and figures as the one thing that Evidently's UI reads. Without `full` its tests stay, its plots go.

    The figures go in as results of a metric of ours: their parameters never change, while those of Evidently's
    ValueDrift hold the threshold, so that its lines would end wherever a threshold does.
    """
    from evidently.core.metric_types import MetricConfig, MetricValueLocation, SingleValue
    from evidently.core.serialization import ReportModel, SnapshotModel

    if report is None:
        nothing: dict[str, Any] = {"metadata": {}, "tags": [], "metric_results": {}, "top_level_metrics": []}
        nothing |= {"widgets": [], "tests_widgets": [], "timestamp": datetime.fromtimestamp(at)}
        model = SnapshotModel(report=ReportModel(items=[]), name=name, **nothing)
    else:
        model = report.to_snapshot_model()
        model = model if full else strip(model)
    figures = list(figures)
    if not full:
        model.widgets = [_table(figures)]
    model.name, model.tags, model.metadata = name, list(tags), dict(metadata)
    results = dict(model.metric_results)
    for figure in figures:
        config = {"type": FIGURE, "figure": figure.name, "of": figure.of}
        key = hashlib.md5(json.dumps(config).encode(), usedforsecurity=False).hexdigest()
        results[key] = SingleValue(
            display_name=f"{figure.name} of {figure.of}",
            value=figure.value,
            metric_value_location=MetricValueLocation(MetricConfig(metric_id=key, params=config), {}),
        )
    model.metric_results = results
    return model


def _table(figures: Sequence[Figure]) -> BaseWidgetInfo:
    """What stands in a snapshot's page instead of its plots."""
    from evidently.legacy.renderers.html_widgets import table_data

    rows = [(figure.name, figure.of, f"{figure.value:.3f}") for figure in figures]
    return table_data(
        title="Figures (plots are kept for odd windows)", column_names=["figure", "of", "value"], data=rows
    )


def strip(model: SnapshotModel) -> SnapshotModel:
    """The snapshot without its plots, 40 times smaller in file and memory; every series and test stays."""
    results = {key: result.copy(update={"widget": []}) for key, result in model.metric_results.items()}
    return model.copy(update={"widgets": [], "metric_results": results})


def repair(workspace: Path) -> list[Path]:
    """Move broken files aside (to `<name>.broken`), because one of them makes the UI fail for every project.

    Call before the UI starts. Returns where the broken files now are.
    """
    broken = [path for path in sorted(workspace.glob("*/snapshots/*.json")) if not _whole(path)]
    broken += [
        path for name in ("metadata", "dashboard") for path in workspace.glob(f"*/{name}.json") if not _read(path)
    ]
    return [path.rename(path.with_name(f"{path.name}.broken")) for path in broken]


def _whole(path: Path) -> bool:
    try:
        _parse(path)
    except (ValueError, OSError):  # pydantic's and json's errors are ValueErrors
        return False
    return True


def _parse(path: Path) -> SnapshotModel:
    from evidently.core.serialization import SnapshotModel

    return SnapshotModel.parse_obj(json.loads(path.read_text()))


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _panels(model_name: str, sites: Sequence[str], classes: Sequence[str], errors: str) -> dict[str, Any]:
    """The panels as Evidently stores them; ids follow from titles, so the same panels are the same file."""
    from evidently.sdk.models import DashboardModel, DashboardPanelPlot, DashboardTabModel, PanelMetric
    from evidently.sdk.panels import bar_plot_panel, counter_panel, line_plot_panel, text_panel

    def lines(name: str, of: Iterable[str], tag: str, legend: str = "") -> list[PanelMetric]:
        return [
            PanelMetric(
                legend=legend or each.replace("_", " "),
                metric=FIGURE,
                metric_labels={"figure": name, "of": each},
                tags=[model_name, tag],
            )
            for each in of
        ]

    def half(panel: Callable[..., DashboardPanelPlot], title: str, values: list[PanelMetric], **how: Any) -> None:
        panels.append(panel(title=title, values=values, size="half", **how))

    text = (
        "A window is odd when two columns pass 1, their threshold, or one passes 3. "
        "The alarm adds up the evidence of many windows: see `alarm` in the settings."
    )
    panels: list[DashboardPanelPlot] = [text_panel(title=f"Live traffic of {model_name}", description=text)]
    half(counter_panel, "Rows in the last window", lines("rows", [OVERALL], OVERALL, "rows"))
    over = "Share of columns over their threshold"
    half(counter_panel, f"{over}, last window", lines("drifted share", [OVERALL], OVERALL, "share"))
    panels.append(
        line_plot_panel(
            title="How far did each column move? (1 = its threshold)",
            description="Distance from the model's reference rows, divided by the column's calibrated threshold.",
            values=lines("drift", [*COLUMNS, "threshold"], OVERALL),
        )
    )
    moved = lines("site drift", [*sites, "threshold"], OVERALL)
    half(line_plot_panel, "Which sites moved? (worst column, 1 = its threshold)", moved)
    half(line_plot_panel, over, lines("drifted share", [OVERALL], OVERALL, "overall"))
    answers = lines("predicted share", classes, OVERALL)
    half(bar_plot_panel, "What does the model answer? (share of each class)", answers, stacked=True)
    half(bar_plot_panel, "Rows per window", lines("rows", [OVERALL], OVERALL, "rows"))
    legends = {
        "accuracy": "accuracy", "accuracy low": "low (95%)", "accuracy high": "high (95%)",
        "estimated accuracy": "estimated without labels",
    }  # fmt: skip
    scores = [line for name, legend in legends.items() for line in lines(name, [OVERALL], PERFORMANCE, legend)]
    half(line_plot_panel, "How often is it right? (from delayed labels, and estimated before they come)", scores)
    own = lines("accuracy", sites, PERFORMANCE)
    half(line_plot_panel, "How often is it right at each site? (from delayed labels)", own)
    if errors:
        panels.insert(1, text_panel(title="Why does the model err?", description=errors))
    for panel in panels:
        panel.id = uuid.uuid5(uuid.NAMESPACE_URL, f"{model_name}/{panel.title}")
    tab = DashboardTabModel(
        id=uuid.uuid5(uuid.NAMESPACE_URL, model_name), title="Monitor", panels=[panel.id for panel in panels]
    )
    return dict(DashboardModel(tabs=[tab], panels=panels).dict())
