"""What travels with a version besides the model: golden rows, and how its training data were spread.

Golden rows prove later, elsewhere, that the version still says what it said. The histograms are what live
traffic is compared with, to see whether it has drifted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from runoff.evaluators import GoldenRows, to_frame, to_matrix
from runoff.prototype import Feature, Prototype, Scalar, plain

GOLDEN_ROWS = 100
# Rows that a translation has to agree on before it is stored.
PROBES = 5_000
BINS = 20

Predict = Callable[[pd.DataFrame], NDArray[np.float64]]


def golden_rows(X: pd.DataFrame, prototype: Prototype, predict: Predict) -> GoldenRows:
    """Rows by which a version can be told from one that only resembles it.

    Up to a hundred rows of X, spread evenly over their probabilities; and the middle one of them with one
    column at a time set to the limits of what is allowed there, and to what training never saw: that is where
    translations differ.

    Args:
        X: rows that the model was trained on, shape (n, features).
        prototype: of the model.
        predict: gives the probabilities of rows, shape (n,).

    Raises:
        ValueError: the model fails on a row that its prototype allows.
    """
    order = np.argsort(predict(X), kind="stable")
    chosen = order[np.unique(np.linspace(0, len(order) - 1, GOLDEN_ROWS).round().astype(int))]
    records = X.iloc[chosen].astype(object).to_dict(orient="records")
    rows = [
        {str(name): None if pd.isna(value) else plain(value) for name, value in record.items()}
        for record in records
    ]
    middle = rows[len(rows) // 2]
    edges = [
        middle | {feature.name: value}
        for feature in prototype.features
        for value in _edges(feature, X[feature.name])
    ]
    for edge in edges:
        try:
            predict(to_frame(to_matrix([edge], prototype), prototype))
        except Exception as error:
            changed = next(name for name, value in edge.items() if value is not middle[name])
            raise ValueError(
                f"the model fails where {changed} is {edge[changed]!r}, which its prototype allows: {error}"
            ) from error
    rows += edges
    said = predict(to_frame(to_matrix(rows, prototype), prototype))
    return GoldenRows(rows, said.tolist())


def probes(
    X: pd.DataFrame, prototype: Prototype, predict: Predict
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rows that show where a translation is wrong, and what the model says of them.

    Each value is by chance one of training, or an edge, or one halfway between two of training. There trees
    split, and rounding decides; and great terms of opposite signs, which rounding spoils, meet.

    Args:
        X: rows that the model was trained on, shape (n, features), of numbers and truth values.
        prototype: of the model.
        predict: gives the probabilities of rows, shape (n,).

    Returns:
        Rows, shape (PROBES, features), and their probabilities, shape (PROBES,).

    Raises:
        ValueError: the model fails on one of them, though its prototype allows them all.
    """
    chance = np.random.default_rng(0)
    rows = np.empty((PROBES, len(prototype.features)))
    for number, feature in enumerate(prototype.features):
        column = X[feature.name]
        seen = column.to_numpy(np.float64)
        edges = np.array([np.nan if edge is None else edge for edge in _edges(feature, column)], np.float64)
        ways = [chance.choice(seen, PROBES), chance.choice(edges if edges.size else seen, PROBES)]
        if feature.codes is None and feature.type != "boolean":
            ways.append(_halfway(feature, seen, chance))
        rows[:, number] = np.choose(chance.integers(len(ways), size=PROBES), ways)
    try:
        return rows, predict(to_frame(rows, prototype))
    except Exception as error:
        raise ValueError(f"the model fails on rows that its prototype allows: {error}") from error


def _halfway(feature: Feature, seen: NDArray[np.float64], chance: np.random.Generator) -> NDArray[np.float64]:
    """Values halfway between one of training and one of the next few."""
    values = np.unique(seen[~np.isnan(seen)])
    lower = chance.integers(len(values), size=PROBES)
    upper = np.minimum(lower + chance.integers(1, 4, size=PROBES), len(values) - 1)
    middle: NDArray[np.float64] = values[lower] + (values[upper] - values[lower]) / 2
    return np.floor(middle) if feature.type == "integer" else middle


def _edges(feature: Feature, column: pd.Series) -> list[Scalar | None]:
    """Values at the edge of what a column may hold, and of whole numbers one that training did not see."""
    if feature.codes is not None:
        found: list[Scalar | None] = [*feature.codes]
    elif feature.type == "boolean":
        found = [True, False]
    else:
        limits = (feature.minimum, feature.maximum, feature.seen.minimum, feature.seen.maximum)
        found = [limit for limit in limits if limit is not None]
    if feature.codes is None and feature.type == "integer":
        values = np.unique(column.dropna())
        gaps = np.flatnonzero(np.diff(values) > 1)
        found += [int(values[gap]) + 1 for gap in gaps[:1]]
    return [*found, None] if feature.nullable else found


def histograms(X: pd.DataFrame, prototype: Prototype, probabilities: NDArray[np.float64]) -> dict[str, Any]:
    """How the columns of X and the model's probabilities are spread, in JSON types.

    Returns:
        `rows`: how many; `features`: for each column `counts` and either the `values` counted (where it is
        coded, or of strings or truth values) or the `edges` between which, and how many are `missing`;
        `prediction`: edges and counts of the probabilities.
    """
    edges = np.linspace(0, 1, BINS + 1)
    return {
        "rows": len(X),
        "features": {feature.name: _spread(X[feature.name], feature) for feature in prototype.features},
        "prediction": {
            "edges": edges.round(6).tolist(),
            "counts": np.histogram(probabilities, edges)[0].tolist(),
        },
    }


def _spread(column: pd.Series, feature: Feature) -> dict[str, Any]:
    present = column.dropna()
    missing = int(column.isna().sum())
    if feature.seen.values is not None:
        counts = present.value_counts()
        values = list(feature.seen.values)
        return {
            "values": values,
            "counts": [int(counts.get(value, 0)) for value in values],
            "missing": missing,
        }
    numbers = present.to_numpy(np.float64)
    # Edges at quantiles: amounts have long tails, and bins of equal width would hold nearly all in one.
    edges = np.unique(np.quantile(numbers, np.linspace(0, 1, BINS + 1)))
    if len(edges) == 1:
        edges = np.array([edges[0], edges[0] + 1])
    return {
        "edges": edges.tolist(),
        "counts": np.histogram(numbers, edges)[0].tolist(),
        "missing": missing,
    }
