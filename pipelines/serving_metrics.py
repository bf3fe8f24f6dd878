"""What the service counts about itself, in Prometheus' format. A registry of its own: nothing global."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from monitoring.safety_net import SafetyNet
from monitoring.traffic import Prediction
from pipelines.serving_model import ServedModel

MAX_SITES = 100
"""Further sites are counted together: clients choose the names, and every name costs memory for ever."""

ENDPOINTS = (
    "/predict",
    "/predict/image",
    "/predict/images",
    "/predictions",
    "/feedback",
    "/cases",
    "/cases/file",
    "/healthz",
    "/readyz",
    "/model",
    "/metrics",
)


class Metrics:
    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter("fedloop_requests", "Requests answered", ["endpoint", "code"], registry=self._registry)
        self._seconds = Histogram(
            "fedloop_request_seconds",
            "From a request's arrival to its answer",
            ["endpoint"],
            buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
            registry=self._registry,
        )
        self._predictions = Counter(
            "fedloop_predictions", "Rows predicted and logged", ["version", "site"], registry=self._registry
        )
        self._rows = Counter("fedloop_log_rows", "Rows written to the traffic log", registry=self._registry)
        self._swaps = Counter("fedloop_swaps", "Changes of the model that serves", registry=self._registry)
        self._version = Gauge("fedloop_model_version", "The version that serves; 0: none", registry=self._registry)
        self._beside = Counter(
            "fedloop_shadow_rows", "Rows predicted beside the answer", ["version"], registry=self._registry
        )
        self._abstained = Counter(
            "fedloop_abstained", "Rows left to a person", ["version", "reason"], registry=self._registry
        )
        self._shed = Counter("fedloop_shadow_shed", "Rows that shadow had no time for", registry=self._registry)
        self._sites: set[str] = set()

    def answered(self, path: str, status: int, seconds: float) -> None:
        endpoint = path if path in ENDPOINTS else "other"
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def logged(self, predictions: Sequence[Prediction]) -> None:
        self._rows.inc(len(predictions))
        for each in predictions:
            if len(self._sites) < MAX_SITES:
                self._sites.add(each.site)
            site = each.site if each.site in self._sites else "other"
            self._predictions.labels(str(each.model_version), site).inc()
            if each.abstained:
                self._abstained.labels(str(each.model_version), each.abstained).inc()

    def swapped(self, served: ServedModel | None) -> None:
        self._swaps.inc()
        self._version.set(0 if served is None else served.version.number)

    def watch(self, net: SafetyNet) -> None:
        """Show where rows go: into the log's database, or into the spool."""
        for name, words, figure in (
            ("log_reachable", "1: rows go into the log's database; 0: into the spool", lambda: net.trouble is None),
            ("log_spool_bytes", "What waits for the log's database, of all replicas here", net.spool.size_bytes),
            ("log_spooled_rows", "Rows that went into the spool since the start", lambda: net.spooled),
            ("log_merged_rows", "Rows brought from the spool into the database since the start", lambda: net.merged),
            ("log_refused_rows", "Spooled rows and labels that the database did not take", lambda: net.refused),
        ):
            Gauge(f"fedloop_{name}", words, registry=self._registry).set_function(figure)

    def beside(self, version: int, rows: int) -> None:
        self._beside.labels(str(version)).inc(rows)

    def shed(self, rows: int) -> None:
        self._shed.inc(rows)

    def text(self) -> bytes:
        return generate_latest(self._registry)
