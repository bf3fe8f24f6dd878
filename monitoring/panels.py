"""The panels of a model's dashboard: what is worth opening in the morning, in the order of the questions.

In: the model's name, its sites and classes, and how things stand. Out: what Evidently stores as a dashboard. Ids follow
from a panel's place, so the same panels are the same file.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from monitoring.drift import COLUMNS, OVERALL

if TYPE_CHECKING:
    from evidently.sdk.models import DashboardPanelPlot, PanelMetric

FIGURE = "evidently:metric_v2:FedloopFigure"
PERFORMANCE, DATA, HISTOGRAMS = "performance", "data", "histograms"
MOST_SITES = 8  # lines that a panel of sites can show before it is a tangle


@dataclass(frozen=True)
class Standing:
    """How things stand, in words. headline: healthy, or since when not; lines: (title, text) of cards below it."""

    headline: str
    text: str
    cards: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class _Sheet:
    """One tab, while its panels are collected."""

    model: str
    title: str
    panels: list[DashboardPanelPlot]

    def text(self, title: str, text: str, size: str = "full") -> None:
        from evidently.sdk.panels import text_panel

        self.panels.append(text_panel(title=title, description=text, size=size))

    def add(self, panel: Callable[..., DashboardPanelPlot], title: str, values: list[PanelMetric], **how: Any) -> None:
        self.panels.append(panel(title=title, values=values, **({"size": "half"} | how)))

    def lines(self, name: str, of: Iterable[str], tag: str, legend: str = "") -> list[PanelMetric]:
        """One series for each; all are filtered by tags, so that no panel mixes what is not one."""
        from evidently.sdk.models import PanelMetric

        return [
            PanelMetric(
                legend=legend or each.replace("_", " "),
                metric=FIGURE,
                metric_labels={"figure": name, "of": each},
                tags=[self.model, tag],
            )
            for each in of
        ]


def panels_of(model: str, sites: Sequence[str], classes: Sequence[str], standing: Standing) -> dict[str, Any]:
    """The dashboard as Evidently stores it. sites: of more than fit, the first are drawn."""
    from evidently.sdk.models import DashboardModel, DashboardTabModel

    drawn = list(sites)[:MOST_SITES]
    few = "" if len(sites) <= MOST_SITES else f" (the {MOST_SITES} of {len(sites)} that moved most)"
    sheets = [
        _morning(_Sheet(model, "Morning", []), drawn, few, standing),
        _answers(_Sheet(model, "Answers and labels", []), drawn, few, classes),
        _data(_Sheet(model, "Data", []), drawn, few),
        _service(_Sheet(model, "Service", [])),
        _fleet(_Sheet(model, "Federated histograms", []), drawn, few),
    ]
    for sheet in sheets:
        for place, panel in enumerate(sheet.panels):
            panel.id = uuid.uuid5(uuid.NAMESPACE_URL, f"{model}/{sheet.title}/{place}")
    tabs = [
        DashboardTabModel(
            id=uuid.uuid5(uuid.NAMESPACE_URL, f"{model}/{sheet.title}"),
            title=sheet.title,
            panels=[panel.id for panel in sheet.panels],
        )
        for sheet in sheets
    ]
    return dict(DashboardModel(tabs=tabs, panels=[panel for sheet in sheets for panel in sheet.panels]).dict())


def _morning(sheet: _Sheet, sites: Sequence[str], few: str, standing: Standing) -> _Sheet:
    """Is it healthy, since when not, which site, which column, what was done."""
    from evidently.sdk.panels import counter_panel, line_plot_panel

    sheet.text(standing.headline, standing.text)
    for title, text in standing.cards:
        sheet.text(title, text, "half")
    sheet.add(
        line_plot_panel,
        "Which sites moved?" + few,
        sheet.lines("site drift", [*sites, "threshold"], OVERALL),
        description="Each site's worst column, in units of its threshold.",
    )
    sheet.add(
        line_plot_panel,
        "Which columns moved?",
        sheet.lines("drift", [*COLUMNS, "threshold"], OVERALL),
        description="Over all sites: the distance from the reference, in units of the column's threshold.",
    )
    sheet.add(line_plot_panel, "How often is it right?", _right(sheet), description=_RIGHT)
    sheet.add(
        line_plot_panel,
        "How long do answers take? (milliseconds)",
        [*sheet.lines("service", ["median_ms"], DATA, "median"), *sheet.lines("service", ["p99_ms"], DATA, "99%")],
    )
    rows = sheet.lines("rows", [OVERALL], OVERALL, "rows")
    sheet.add(counter_panel, "Rows in the last window", rows)
    sheet.add(
        counter_panel, "Their share with a label by now", sheet.lines("labelled share", [OVERALL], PERFORMANCE, "share")
    )
    return sheet


_RIGHT = "By delayed labels, with a 95% interval; and what was to be expected before they came."


def _right(sheet: _Sheet) -> list[PanelMetric]:
    by_labels = {"accuracy": "by labels", "accuracy low": "by labels, low", "accuracy high": "by labels, high"}
    metrics = [line for name, legend in by_labels.items() for line in sheet.lines(name, [OVERALL], PERFORMANCE, legend)]
    for name, legend in (("estimated accuracy", "estimated"), ("doubtful estimate", "estimated, in doubt")):
        metrics += sheet.lines(name, ["value"], PERFORMANCE, legend)
    return metrics


def _answers(sheet: _Sheet, sites: Sequence[str], few: str, classes: Sequence[str]) -> _Sheet:
    from evidently.sdk.panels import bar_plot_panel, line_plot_panel

    shares = sheet.lines("predicted share", classes, OVERALL)
    sheet.add(bar_plot_panel, "What does the model answer? (share of each class)", shares, stacked=True)
    sheet.add(
        line_plot_panel,
        "How often is it right at each site? (by labels)" + few,
        sheet.lines("accuracy", sites, PERFORMANCE),
    )
    estimated = [
        line
        for name, word in (("estimated accuracy", "estimated"), ("doubtful estimate", "in doubt"))
        for of, end in (("value", ""), ("low", ", low"), ("high", ", high"))
        for line in sheet.lines(name, [of], PERFORMANCE, word + end)
    ]
    sheet.add(
        line_plot_panel,
        "What accuracy is to be expected?",
        estimated,
        description="From calibrated confidences. In doubt: labels contradict it, or rows lie outside the reference.",
    )
    sheet.add(
        line_plot_panel, "How long do labels take? (hours)", sheet.lines("label delay", ["median", "90%"], PERFORMANCE)
    )
    return sheet


def _data(sheet: _Sheet, sites: Sequence[str], few: str) -> _Sheet:
    from evidently.sdk.panels import bar_plot_panel, line_plot_panel

    scopes = [OVERALL, *sites]
    for name, title in (
        ("unreadable", "Share of pictures that cannot be read"),
        ("out of range", "Share of pictures beyond the accepted range"),
        ("duplicates", "Share of pictures that came before in the window"),
    ):
        sheet.add(line_plot_panel, title + few, sheet.lines(name, scopes, DATA))
    volume = [*sheet.lines("volume", [OVERALL], DATA, "now"), *sheet.lines("usual volume", [OVERALL], DATA, "usual")]
    sheet.add(
        line_plot_panel, "Rows per hour", volume, description="Usual: at this hour, once it was seen on some days."
    )
    sheet.add(bar_plot_panel, "Rows per window", sheet.lines("rows", [OVERALL], OVERALL, "rows"))
    sheet.add(
        line_plot_panel, "Share of columns over their threshold", sheet.lines("drifted share", [OVERALL], OVERALL)
    )
    return sheet


def _service(sheet: _Sheet) -> _Sheet:
    from evidently.sdk.panels import bar_plot_panel, line_plot_panel

    latency = [*sheet.lines("service", ["median_ms"], DATA, "median"), *sheet.lines("service", ["p99_ms"], DATA, "99%")]
    sheet.add(line_plot_panel, "How long do answers take? (milliseconds)", latency)
    sheet.add(bar_plot_panel, "Requests while the window filled", sheet.lines("service", ["requests"], DATA))
    failures = sheet.lines("service", ["errors", "unavailable", "refused"], DATA)
    sheet.add(line_plot_panel, "Share of requests without an answer", failures, description=_FAILURES)
    sheet.add(line_plot_panel, "Share of rows left to a person", sheet.lines("service", ["abstained"], DATA))
    return sheet


_FAILURES = (
    "Errors: the model or the service failed. Unavailable: overloaded, or no log to write to. Refused: not valid."
)


def _fleet(sheet: _Sheet, sites: Sequence[str], few: str) -> _Sheet:
    from evidently.sdk.panels import bar_plot_panel, line_plot_panel

    sheet.text(
        "Drift from sums alone", "Sites count their own new rows into bins; no row and no single value leaves a site."
    )
    columns = sheet.lines("histogram drift", [*COLUMNS, "threshold"], HISTOGRAMS)
    sheet.add(line_plot_panel, "Which columns moved?", columns)
    moved = sheet.lines("histogram site drift", [*sites, "threshold"], HISTOGRAMS)
    sheet.add(line_plot_panel, "Which sites moved?" + few, moved)
    sheet.add(bar_plot_panel, "Rows counted", sheet.lines("histogram rows", [OVERALL], HISTOGRAMS, "rows"))
    return sheet
