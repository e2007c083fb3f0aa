"""The gate: whether a candidate is better than the version that is live, on the same held-out rows.

It tells, and releases nothing: that is for a person.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import bootstrap

from runoff.evaluation import LEVEL, TITLES
from runoff.releases import Releases
from runoff.store import ModelVersion, Store, StoreError

Verdict = Literal["better", "worse", "no difference", "mixed"]

SENTENCES: dict[Verdict, str] = {
    "better": "The candidate is better than the version that is live.",
    "worse": "The candidate is worse than the version that is live.",
    "no difference": "These rows show no difference between the candidate and the version that is live.",
    "mixed": "The candidate is better by one metric, and worse by the other.",
}

REPEATS = 2000
# Resamples that are in memory at a time.
BATCH = 100

Losses = NDArray[np.float64]


def _brier(y: Losses, p: Losses) -> Losses:
    return (p - y) ** 2


def _log_loss(y: Losses, p: Losses) -> Losses:
    # Kept from 0 and 1 as scikit-learn does: one certainty that was wrong would outweigh all other rows.
    tiny = np.finfo(np.float64).eps
    p = np.clip(p, tiny, 1 - tiny)
    return np.where(y == 1, -np.log(p), -np.log1p(-p))


# What a row costs; the metrics are means of these.
LOSSES: dict[str, Callable[[Losses, Losses], Losses]] = {"brier": _brier, "log_loss": _log_loss}


@dataclass(frozen=True)
class Difference:
    """A metric of both versions, and how far the candidate's lies above the live one's: below 0 is better."""

    candidate: float
    live: float
    value: float
    lower: float
    upper: float

    @property
    def verdict(self) -> Verdict:
        """What the interval says of the candidate."""
        if self.upper < 0:
            return "better"
        return "worse" if self.lower > 0 else "no difference"


@dataclass(frozen=True)
class Gate:
    """What is said of a candidate.

    Args:
        verdict: what it is beside the version that is live; None where there is none to compare it with.
        differences: by metric.
        text: all of it in Markdown, with the command that would release the candidate.
    """

    verdict: Verdict | None
    differences: dict[str, Difference]
    text: str

    def _repr_markdown_(self) -> str:
        """How a notebook shows it."""
        return self.text


def compare_with_live(
    store: Store, candidate: ModelVersion, X: pd.DataFrame, y: ArrayLike, seed: int
) -> Gate:
    """Compare a version with the one that its service answers from, on rows that it was not trained on.

    Args:
        store: where the versions and the releases are.
        candidate: a stored version; its service has the name of its model.
        X: held-out rows, shape (n, features).
        y: their outcomes, 0 or 1; shape (n,).
        seed: of the resampling.
    """
    service = candidate.name
    served = Releases(store).live(service)
    if served is None:
        said = f"Nothing has been released to {service} yet, so there is nothing to compare with."
        return Gate(None, {}, _told(candidate, said))
    try:
        live = store.load(served.model, served.version)
    except StoreError as error:
        said = f"The version that is live, {served.model} {served.version}, cannot be loaded: {error}."
        return Gate(None, {}, _told(candidate, said))
    ours = store.load(candidate.name, candidate.id).probabilities(X)
    differences = compare(y, ours, live.probabilities(X), seed)
    verdict = _overall(differences)
    said = f"**{SENTENCES[verdict]}** What is live is {served.model} {served.version}."
    if live.version.record.get("data_digest") != candidate.record.get("data_digest"):
        said += " It was trained on other data, and may have seen some of these rows: that flatters it."
    return Gate(verdict, differences, _told(candidate, f"{said}\n\n{_table(differences)}"))


def compare(y: ArrayLike, candidate: ArrayLike, live: ArrayLike, seed: int) -> dict[str, Difference]:
    """The Brier score and the log loss of two versions on the same rows.

    The intervals are of the mean difference over the rows, by the percentile bootstrap over rows. Both hold
    at once with 95 %: each has half of the error (Dunn, "Multiple comparisons among means", JASA 56, 1961).

    Args:
        y: outcomes, 0 or 1; shape (n,).
        candidate: its probabilities of outcome 1; shape (n,).
        live: those of the other version.
        seed: of the resampling.
    """
    y, candidate, live = (np.asarray(each, np.float64) for each in (y, candidate, live))
    level = 1 - (1 - LEVEL) / len(LOSSES)
    found = {}
    for metric, loss in LOSSES.items():
        ours, theirs = loss(y, candidate), loss(y, live)
        interval = bootstrap(
            (ours - theirs,),
            np.mean,
            n_resamples=REPEATS,
            batch=BATCH,
            confidence_level=level,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
        found[metric] = Difference(
            float(ours.mean()),
            float(theirs.mean()),
            float((ours - theirs).mean()),
            float(interval.low),
            float(interval.high),
        )
    return found


def _overall(differences: dict[str, Difference]) -> Verdict:
    shown = {each.verdict for each in differences.values()} - {"no difference"}
    if len(shown) > 1:
        return "mixed"
    return shown.pop() if shown else "no difference"


def _table(differences: dict[str, Difference]) -> str:
    rows = [
        f"| {TITLES[metric]} | {each.candidate:.4f} | {each.live:.4f} "
        f"| {each.value:+.4f} ({each.lower:+.4f} to {each.upper:+.4f}) | {each.verdict} |"
        for metric, each in differences.items()
    ]
    header = ["| | candidate | live | difference | |", "|---|---|---|---|---|"]
    return "\n".join(header + rows)


def _told(candidate: ModelVersion, said: str) -> str:
    command = f'runoff release {candidate.name} {candidate.id} --reason "…"'
    return f"{said}\n\nNothing is released here. Who wants the candidate live runs\n\n```sh\n{command}\n```\n"
