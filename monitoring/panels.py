"""The panels of a model's dashboard: what is worth opening in the morning, in the order of the questions.

In: the model's name, its sites and classes, and how things stand. Out: what Evidently stores as a dashboard. Its UI
shows plain text only, no tabs, and has six colours: sections begin with a card, and no panel has more lines than that.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from models.quality import QUALITY_COLUMNS
from monitoring.drift import COLUMNS, OVERALL

if TYPE_CHECKING:
    from evidently.sdk.models import DashboardPanelPlot, PanelMetric

FIGURE = "evidently:metric_v2:FedloopFigure"
PERFORMANCE, DATA, HISTOGRAMS = "performance", "data", "histograms"
MOST_SITES = 5  # beside the threshold


@dataclass(frozen=True)
class Standing:
    """How things stand, in words. headline: healthy, or since when not; cards: (title, text), below it.

    histograms: whether sites have sent any, which then have a section of their own.
    """

    headline: str
    text: str
    cards: tuple[tuple[str, str], ...] = ()
    histograms: bool = False


@dataclass(frozen=True)
class _Sheet:
    """The panels, while they are collected."""

    model: str
    panels: list[DashboardPanelPlot] = field(default_factory=list)

    def text(self, title: str, text: str, size: str = "full") -> None:
        from evidently.sdk.panels import text_panel

        self.panels.append(text_panel(title=title, description=text, size=size))

    def add(
        self, panel: Callable[..., DashboardPanelPlot], title: str, about: str, *lines: list[PanelMetric], **how: Any
    ) -> None:
        values = [line for some in lines for line in some]
        self.panels.append(panel(title=title, description=about, values=values, size="half", **how))

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
    """The dashboard as Evidently stores it; ids follow from a panel's place, so the same panels are the same file.

    sites: of more than fit, the first are drawn.
    """
    from evidently.sdk.models import DashboardModel, DashboardTabModel

    drawn = list(sites)[:MOST_SITES]
    few = "" if len(sites) <= MOST_SITES else f" The {MOST_SITES} of {len(sites)} that moved most."
    sheet = _Sheet(model)
    _morning(sheet, drawn, few, standing)
    _answers(sheet, drawn, few, classes)
    _data(sheet, drawn, few)
    _service(sheet)
    if standing.histograms:
        _histograms(sheet, drawn, few)
    for place, panel in enumerate(sheet.panels):
        panel.id = uuid.uuid5(uuid.NAMESPACE_URL, f"{model}/{place}")
    tab = DashboardTabModel(
        id=uuid.uuid5(uuid.NAMESPACE_URL, model), title="Monitor", panels=[panel.id for panel in sheet.panels]
    )
    return dict(DashboardModel(tabs=[tab], panels=sheet.panels).dict())


def _morning(sheet: _Sheet, sites: Sequence[str], few: str, standing: Standing) -> None:
    """Is it healthy, since when not, what was done; which site, which column, and does the model still know."""
    from evidently.sdk.panels import line_plot_panel

    sheet.text(standing.headline, standing.text)
    for place, (title, text) in enumerate(standing.cards, start=1):
        alone = place == len(standing.cards) and place % 2 == 1  # half a card would leave a hole beside it
        sheet.text(title, text, "full" if alone else "half")
    threshold = sheet.lines("drift", ["threshold"], OVERALL)
    moved = "How far from the reference, in units of the threshold; over all sites."
    sheet.add(
        line_plot_panel,
        "Which sites moved?",
        f"Each site's worst column, in units of its threshold.{few}",
        sheet.lines("site drift", [*sites, "threshold"], OVERALL),
    )
    answers = sheet.lines("drift", [name for name in COLUMNS if name not in QUALITY_COLUMNS], OVERALL)
    sheet.add(line_plot_panel, "Did what is on the pictures, or the answers, move?", moved, answers, threshold)
    taken = sheet.lines("drift", QUALITY_COLUMNS, OVERALL)
    sheet.add(line_plot_panel, "Did the way the pictures are taken move?", moved, taken, threshold)
    sheet.add(
        line_plot_panel,
        "How often is it right?",
        "By delayed labels, with a 95% interval; and what was to be expected before they came.",
        sheet.lines("accuracy", [OVERALL], PERFORMANCE, "by labels"),
        sheet.lines("accuracy low", [OVERALL], PERFORMANCE, "low"),
        sheet.lines("accuracy high", [OVERALL], PERFORMANCE, "high"),
        sheet.lines("estimated accuracy", ["value"], PERFORMANCE, "expected"),
        sheet.lines("doubtful estimate", ["value"], PERFORMANCE, "expected, in doubt"),
    )


def _answers(sheet: _Sheet, sites: Sequence[str], few: str, classes: Sequence[str]) -> None:
    from evidently.sdk.panels import bar_plot_panel, counter_panel, line_plot_panel

    sheet.text("Answers and labels", "What the model says, and what the clinics say afterwards.")
    shares = sheet.lines("predicted share", classes, OVERALL)
    sheet.add(bar_plot_panel, "What does it answer?", "Share of each class.", shares, stacked=True)
    own = sheet.lines("accuracy", sites, PERFORMANCE)
    sheet.add(
        line_plot_panel,
        "How often is it right at each site?",
        f"By delayed labels, where a window has ten of a site.{few}",
        own,
    )
    expected = [
        sheet.lines(name, [of], PERFORMANCE, word + end)
        for name, word in (("estimated accuracy", "expected"), ("doubtful estimate", "in doubt"))
        for of, end in (("value", ""), ("low", ", low"), ("high", ", high"))
    ]
    doubts = "By calibrated confidence. In doubt: labels contradict it, or rows lie outside the reference."
    sheet.add(line_plot_panel, "How often is it to be expected right?", doubts, *expected)
    delay = sheet.lines("label delay", ["median", "90%"], PERFORMANCE)
    sheet.add(line_plot_panel, "How long do labels take?", "Hours, of those that have come.", delay)
    sheet.add(counter_panel, "Rows in the last window", "", sheet.lines("rows", [OVERALL], OVERALL, "rows"))
    share = sheet.lines("labelled share", [OVERALL], PERFORMANCE, "of them have a label")
    sheet.add(counter_panel, "Labelled so far", "", share)


def _data(sheet: _Sheet, sites: Sequence[str], few: str) -> None:
    from evidently.sdk.panels import line_plot_panel

    sheet.text("Data", "Whether pictures can be used, come twice, and arrive as often as they do.")
    for name, title in (
        ("unreadable", "Pictures that cannot be read"),
        ("out of range", "Pictures beyond the accepted range"),
        ("duplicates", "Pictures that came before in the window"),
    ):
        sheet.add(line_plot_panel, title, f"Share of the rows.{few}", sheet.lines(name, [OVERALL, *sites], DATA))
    now = sheet.lines("volume", [OVERALL], DATA, "now")
    usual = sheet.lines("usual volume", [OVERALL], DATA, "usual")
    sheet.add(line_plot_panel, "Rows per hour", "Usual: at this hour, once some days of it were seen.", now, usual)


def _service(sheet: _Sheet) -> None:
    from evidently.sdk.panels import line_plot_panel

    sheet.text("Service", "How the service fared while a window's rows came, under the version that served.")
    times = sheet.lines("service", ["median_ms"], DATA, "median"), sheet.lines("service", ["p99_ms"], DATA, "99%")
    sheet.add(line_plot_panel, "How long do answers take?", "Milliseconds from a request's arrival.", *times)
    failures = sheet.lines("service", ["errors", "unavailable", "refused", "abstained"], DATA)
    about = "Share of requests: errors are ours, unavailable is overload or no log, refused were not valid."
    sheet.add(line_plot_panel, "What was not answered?", f"{about} Abstained: share of rows.", failures)


def _histograms(sheet: _Sheet, sites: Sequence[str], few: str) -> None:
    from evidently.sdk.panels import line_plot_panel

    about = "Sites count their own new rows into bins; neither a row nor a single value leaves a site."
    sheet.text("Drift from federated histograms", about)
    answers = [name for name in COLUMNS if name not in QUALITY_COLUMNS]
    for columns, title in (
        (QUALITY_COLUMNS, "Did the way pictures are taken move?"),
        (answers, "Did the answers move?"),
    ):
        lines = sheet.lines("histogram drift", [*columns, "threshold"], HISTOGRAMS)
        sheet.add(line_plot_panel, title, "In units of the threshold, over all sites.", lines)
    moved = sheet.lines("histogram site drift", [*sites, "threshold"], HISTOGRAMS)
    sheet.add(line_plot_panel, "Which sites moved?", f"Each site's worst column.{few}", moved)
    sheet.add(line_plot_panel, "Rows counted", "", sheet.lines("histogram rows", [OVERALL], HISTOGRAMS, "rows"))
