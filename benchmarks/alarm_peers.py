"""The detectors that the alarm is measured against. Each turns a run of windows into one score a window; an alarm is
the first score at a threshold or above, and the thresholds are set on stable runs.

River's detectors see every row of every column, all rows together and each site by itself, standardised by the
reference, after up to 500 rows of it; classes come as one indicator each. KSWIN, which tests anew at every row, sees
all rows together alone. Evidently sees every window by itself.
"""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

WARM_UP = 500
DELTAS = (2e-3, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-10, 1e-13, 1e-17, 1e-22, 1e-30)


class _Adwin:
    """One ADWIN for each confidence; the score is that of the most demanding one that has fired."""

    def __init__(self) -> None:
        from river.drift import ADWIN

        self.parts = [ADWIN(delta=delta) for delta in DELTAS]
        self.score = 0.0

    def update(self, x: float) -> None:
        for delta, part in zip(DELTAS, self.parts, strict=True):
            part.update(x)
            if part.drift_detected:
                self.score = max(self.score, -float(np.log10(delta)))


class _PageHinkley:
    def __init__(self) -> None:
        from river.drift import PageHinkley

        self.part = PageHinkley(threshold=1e300)
        self.score = 0.0

    def update(self, x: float) -> None:
        part = self.part
        part.update(x)
        if part._x_mean.n >= part.min_instances:
            up, down = part._sum_increase - part._min_increase, part._max_decrease - part._sum_decrease
            self.score = max(self.score, up, down)


class _Kswin:
    def __init__(self) -> None:
        from river.drift import KSWIN

        self.part = KSWIN(alpha=0.0, seed=0)
        self.score = 0.0

    def update(self, x: float) -> None:
        self.part.update(x)
        if self.part.p_value:  # it is 0 until the first test
            self.score = max(self.score, -float(np.log10(self.part.p_value)))


def quick_kswin() -> None:
    """Give river's KSWIN the same test out of a table: two samples of 30 have few different p-values."""
    from river.drift import kswin
    from scipy.stats import ks_2samp

    def p_value(steps: int) -> float:
        if steps == 0:
            return 1.0
        shifted = np.concatenate([np.arange(30.0)[steps:], np.full(steps, 99.0)])
        return float(ks_2samp(np.arange(30.0), shifted, method="auto").pvalue)

    table = [p_value(steps) for steps in range(31)]

    def quick(a: Sequence[float], b: Sequence[float], method: str) -> tuple[float, float]:
        x, y = np.sort(a), np.sort(b)
        both = np.concatenate([x, y])
        gap = np.abs(np.searchsorted(x, both, side="right") - np.searchsorted(y, both, side="right")).max()
        return gap / 30.0, table[int(gap)]

    rng = np.random.default_rng(0)
    for _ in range(50):
        a, b = rng.normal(size=30), rng.normal(rng.uniform(0, 2), size=30)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert np.allclose(quick(a, b, "auto"), tuple(ks_2samp(a, b, method="auto")), rtol=1e-6)
    kswin.stats = types.SimpleNamespace(ks_2samp=quick)


def _numbers(frame: pd.DataFrame, classes: Sequence[object]) -> pd.DataFrame:
    """Every column as numbers: of two classes one indicator is enough."""
    out = frame.drop(columns=["prediction", "site"], errors="ignore").astype(float)
    for each in classes[1:] if len(classes) == 2 else classes:
        out[f"is {each}"] = (frame["prediction"] == each).astype(float)
    return out


def river(
    make: Callable[[], object], reference: Mapping[str, pd.DataFrame], windows: Sequence[pd.DataFrame]
) -> list[float]:
    """The highest score of any column and scope after each window."""
    whole = pd.concat(list(reference.values()), ignore_index=True)
    classes = sorted(whole["prediction"].unique())
    base = _numbers(whole, classes)
    mean, spread = base.mean().to_numpy(), np.maximum(base.std().to_numpy(), 1e-3)
    scopes = ["overall", *(reference if len(reference) > 1 and make is not _Kswin else ())]
    detectors = {scope: [make() for _ in mean] for scope in scopes}

    def feed(scope: str, rows: np.ndarray) -> None:
        for column, detector in enumerate(detectors[scope]):
            for value in rows[:, column]:
                detector.update(float(value))  # type: ignore[attr-defined]

    def fed(scope: str, frame: pd.DataFrame) -> None:
        feed(scope, (_numbers(frame, classes).to_numpy() - mean) / spread)

    fed("overall", whole.sample(min(WARM_UP, len(whole)), random_state=0))
    for scope in scopes[1:]:
        fed(scope, reference[scope][:WARM_UP])
    for each in detectors.values():
        for detector in each:
            detector.score = 0.0  # type: ignore[attr-defined]
    found = []
    for window in windows:
        fed("overall", window)
        for scope in scopes[1:]:
            fed(scope, window[window["site"] == scope])
        found.append(max(d.score for each in detectors.values() for d in each))  # type: ignore[attr-defined]
    return found


def evidently(reference: Mapping[str, pd.DataFrame], windows: Sequence[pd.DataFrame]) -> list[float]:
    """The share of drifted columns of each window, by the tests that Evidently itself chooses and computes."""
    from evidently.legacy.calculations.stattests.registry import get_stattest
    from evidently.legacy.core import ColumnType

    whole = pd.concat(list(reference.values()), ignore_index=True)
    names = [name for name in windows[0] if name != "site"]

    def drifted(name: str, window: pd.DataFrame) -> bool:
        kind = ColumnType.Categorical if name == "prediction" else ColumnType.Numerical
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            return bool(
                get_stattest(whole[name], window[name], kind, None)(whole[name], window[name], kind, None).drifted
            )

    return [float(np.mean([drifted(name, window) for name in names])) for window in windows]


PEERS: Mapping[str, Callable[[Mapping[str, pd.DataFrame], Sequence[pd.DataFrame]], list[float]]] = {
    "evidently": evidently,
    "adwin": lambda reference, windows: river(_Adwin, reference, windows),
    "kswin": lambda reference, windows: river(_Kswin, reference, windows),
    "page_hinkley": lambda reference, windows: river(_PageHinkley, reference, windows),
}
