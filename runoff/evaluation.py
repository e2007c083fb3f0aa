"""How good a model of two classes is, and what it looks at.

Outcomes `y` are 0 or 1, probabilities `p` are of outcome 1, both of shape (n,).
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest
from sklearn.base import BaseEstimator
from sklearn.inspection import permutation_importance
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict

METRICS = {
    "roc_auc": roc_auc_score,
    "pr_auc": average_precision_score,
    "brier": brier_score_loss,
    "log_loss": log_loss,
}
# As a reader sees them, and which way is better.
TITLES = {"roc_auc": "ROC AUC ↑", "pr_auc": "PR AUC ↑", "brier": "Brier score ↓", "log_loss": "Log loss ↓"}

BOOTSTRAP_REPEATS = 500
LEVEL = 0.95

Measures = dict[str, dict[str, float]]


def measure(y: ArrayLike, p: ArrayLike) -> dict[str, float]:
    """The four metrics: two of the ranking, two of the probabilities themselves."""
    return {name: float(metric(y, p)) for name, metric in METRICS.items()}


def measure_with_intervals(y: ArrayLike, p: ArrayLike, seed: int) -> Measures:
    """The four metrics with 95 % percentile bootstrap intervals, resampled within each class.

    Returns:
        By metric: value, lower, upper.

    Source: Efron & Tibshirani, "An Introduction to the Bootstrap" (1993), section 13.3.
    """
    y, p = np.asarray(y), np.asarray(p)
    rng = np.random.default_rng(seed)
    classes = [np.flatnonzero(y == outcome) for outcome in (0, 1)]
    draws = []
    for _ in range(BOOTSTRAP_REPEATS):
        rows = np.concatenate([rng.choice(rows, rows.size) for rows in classes])
        draws.append(measure(y[rows], p[rows]))
    frame = pd.DataFrame(draws)
    tail = (1 - LEVEL) / 2
    return {
        name: {
            "value": value,
            "lower": float(frame[name].quantile(tail)),
            "upper": float(frame[name].quantile(1 - tail)),
        }
        for name, value in measure(y, p).items()
    }


def cross_validate(
    candidates: Mapping[str, BaseEstimator], X: pd.DataFrame, y: pd.Series, seed: int
) -> pd.DataFrame:
    """The four metrics of each candidate by stratified 5-fold cross-validation.

    Each row is predicted by a model that has not seen it; the metrics are of all these predictions at once.
    """
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    rows = {
        name: measure(y, cross_val_predict(estimator, X, y, cv=folds, method="predict_proba")[:, 1])
        for name, estimator in candidates.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def calibration(y: ArrayLike, p: ArrayLike, bins: int = 10) -> pd.DataFrame:
    """Predicted against observed: rows sorted by prediction, cut into bins of equal size.

    Returns:
        A row for each bin: predicted (mean), observed (share of outcome 1), its exact 95 % interval
        (Clopper & Pearson 1934), count.
    """
    y, p = np.asarray(y), np.asarray(p)
    rows = []
    for chosen in np.array_split(np.argsort(p, kind="stable"), bins):
        test = binomtest(int(y[chosen].sum()), chosen.size).proportion_ci(LEVEL, method="exact")
        rows.append((p[chosen].mean(), y[chosen].mean(), test.low, test.high, chosen.size))
    return pd.DataFrame(rows, columns=["predicted", "observed", "lower", "upper", "count"])


def importance(estimator: BaseEstimator, X: pd.DataFrame, y: ArrayLike, seed: int) -> pd.DataFrame:
    """What shuffling a column costs in ROC AUC, by column, the costliest first.

    Returns:
        Columns mean, lower, upper: the mean loss over 20 shuffles, and the range of their middle 95 %.

    Source: Breiman, "Random Forests", Machine Learning 45 (2001), section 10.
    """
    found = permutation_importance(estimator, X, y, scoring="roc_auc", n_repeats=20, random_state=seed)
    losses: NDArray[np.float64] = found.importances
    tail = (1 - LEVEL) / 2
    frame = pd.DataFrame(
        {
            "mean": losses.mean(axis=1),
            "lower": np.quantile(losses, tail, axis=1),
            "upper": np.quantile(losses, 1 - tail, axis=1),
        },
        index=list(X.columns),
    )
    return frame.sort_values("mean", ascending=False)


def published_at() -> str | None:
    """Where the notebook that runs is published: its address on Posit Connect; None elsewhere."""
    server, guid = (os.environ.get(name) for name in ("CONNECT_SERVER", "CONNECT_CONTENT_GUID"))
    return f"{server.rstrip('/')}/content/{guid}/" if server and guid else None


def training_record(
    *,
    algorithm: str,
    why: str,
    parameters: Mapping[str, Any],
    data_digest: str,
    code_digest: str,
    seed: int,
    began: datetime,
    rows: Mapping[str, int],
    metrics: Measures,
    importance: pd.DataFrame,
    threshold: float,
) -> dict[str, Any]:
    """Everything that is worth knowing of a training run later, in JSON types.

    Args:
        algorithm: what was fitted, in the words of its field.
        why: why this and no other.
        parameters: of the estimator, as set.
        data_digest: SHA-256 of the data.
        code_digest: SHA-256 of the code that trained.
        seed: of everything random.
        began: when the run began, with a time zone.
        rows: how many rows were trained on, held out, ….
        metrics: on held-out rows, as `measure_with_intervals` gives them.
        importance: as `importance` gives it.
        threshold: from which probability on a row is of class 1, for those who ask for a class.
    """
    now = datetime.now(UTC)
    packages = ("scikit-learn", "numpy", "scipy", "pandas", "joblib")
    return {
        "library": "scikit-learn",
        "algorithm": algorithm,
        "why": why,
        "parameters": dict(parameters),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "data_digest": data_digest,
        "code_digest": code_digest,
        "seed": seed,
        "notebook": published_at(),
        "trained_at": now.isoformat(timespec="seconds").replace("+00:00", "Z"),
        "seconds": round((now - began).total_seconds(), 1),
        "rows": dict(rows),
        "threshold": threshold,
        "metrics": metrics,
        "importance": {
            str(name): {key: round(float(value), 6) for key, value in row.items()}
            for name, row in importance.iterrows()
        },
    }
