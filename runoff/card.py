"""Model cards: what is known of a version, on one page, in Markdown or in HTML that needs no network.

After Mitchell et al., "Model Cards for Model Reporting", FAT* 2019 (DOI 10.1145/3287560.3287596), section 4;
everything on the card travels with the version.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from runoff.evaluators import GoldenRows
from runoff.prototype import Feature
from runoff.releases import Release
from runoff.store import ModelVersion

Form = Literal["md", "html"]

# As a reader sees them, and which way is better; a metric of another name is shown by its name.
METRICS = {"roc_auc": "ROC AUC ↑", "pr_auc": "PR AUC ↑", "brier": "Brier score ↓", "log_loss": "Log loss ↓"}
BAR_WIDTH, BAR_HEIGHT = 6, 36


@dataclass(frozen=True)
class Bars:
    """A histogram as rectangles of an SVG: x, y, width and height of each, in pixels."""

    width: int
    height: int
    rectangles: tuple[tuple[int, int, int, int], ...]


def render(
    version: ModelVersion,
    golden: GoldenRows | None,
    reference: Mapping[str, Any] | None,
    releases: list[Release],
    form: Form,
) -> str:
    """The card of a version.

    Args:
        version: whose card it is.
        golden: its golden rows.
        reference: its histograms, as `runoff.reference.histograms` makes them.
        releases: those by which it was ever served.
        form: Markdown or HTML.
    """
    environment = Environment(
        loader=PackageLoader("runoff"),
        # Whatever is put into a card is escaped: others wrote it.
        autoescape=select_autoescape(["html"]),
        finalize=_in_markdown if form == "md" else None,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["told"] = told
    environment.filters["allowed"] = _allowed
    return environment.get_template(f"card.{form}").render(
        version=version,
        about=_about(version, golden),
        metrics={METRICS.get(name, name): each for name, each in part(version, "metrics").items()},
        # The costliest column first: kept in YAML, they come back by name.
        importance=sorted(part(version, "importance").items(), key=lambda each: -(number(each[1]) or 0)),
        parameters=part(version, "parameters"),
        reference=reference,
        bars=_bars if reference else None,
        releases=releases,
    )


def part(version: ModelVersion, name: str) -> Mapping[str, Any]:
    """A part of a training record, such as its metrics; empty where the record has none in that form.

    Those who bring their own model write what they like: nothing is taken for granted of a record.
    """
    found = version.record.get(name)
    return found if isinstance(found, Mapping) else {}


def number(figure: Any) -> float | None:
    """The number of a figure, which may have an interval around it; None where there is none."""
    if isinstance(figure, Mapping):
        figure = figure.get("value", figure.get("mean"))
    return figure if isinstance(figure, int | float) else None


def told(figure: Any) -> str:
    """A figure of a record in words, with its interval if it has one; anything else as it is."""
    plain = number(figure)
    if plain is None or isinstance(figure, bool):
        return str(figure)
    if not isinstance(figure, Mapping):
        return f"{plain:,}" if isinstance(plain, int) else f"{plain:.4g}"
    limits = [number(figure.get(limit)) for limit in ("lower", "upper")]
    if None in limits:
        return f"{plain:.4f}"
    return f"{plain:.4f} ({limits[0]:.4f} to {limits[1]:.4f})"


def _about(version: ModelVersion, golden: GoldenRows | None) -> dict[str, Any]:
    """What is known of a version in a word each, by its title."""
    record = version.record
    versions = {"python": ".".join(map(str, version.python_version))} | dict(part(version, "versions"))
    known = {
        "stored": f"{version.created:%Y-%m-%d %H:%M:%S} UTC",
        "SHA-256": version.digest or "not recorded",
        "algorithm": record.get("algorithm", "that of another tool"),
        "why": record.get("why"),
        "answers": f"the probability of class 1; class 1 from {record.get('threshold', 0.5)} on",
        "needs": ", ".join(version.required_packages),
        "made by": ", ".join(f"{name} {number}" for name, number in versions.items() if number),
        "trained": record.get("trained_at"),
        "seconds of training": record.get("seconds"),
        "seed": record.get("seed"),
        "SHA-256 of the data": record.get("data_digest"),
        "SHA-256 of the code": record.get("code_digest"),
        **{f"rows, {name.replace('_', ' ')}": told(count) for name, count in part(version, "rows").items()},
        "golden rows": f"{len(golden.rows)}, reproduced before it is served" if golden else None,
        "translated": f"no: {version.untranslated}" if version.untranslated else None,
        **{f"SHA-256 of {name}": digest for name, digest in version.files.items()},
    }
    return {title: each for title, each in known.items() if each not in (None, "")}


def _in_markdown(value: Any) -> str:
    """A value that says in Markdown what it says, and breaks no table."""
    text = str(value).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\|`*\[\]])", r"\\\1", " ".join(text.split()))


def _allowed(feature: Feature) -> str:
    """What a column may hold, in words."""
    if feature.codes is not None:
        text = ", ".join(map(str, feature.codes))
    elif feature.minimum is not None or feature.maximum is not None:
        least = "" if feature.minimum is None else f"{feature.minimum:,g}"
        most = "" if feature.maximum is None else f"{feature.maximum:,g}"
        text = f"{least} to {most}" if least and most else f"at least {least}" if least else f"at most {most}"
    else:
        text = f"any {feature.type}"
    return f"{text}, or null" if feature.nullable else text


def _bars(spread: Mapping[str, Any]) -> Bars:
    """A histogram of a reference as bars of equal width; bins at quantiles are of equal weight by design."""
    counts = spread["counts"]
    top = max([*counts, 1])
    heights = [round(BAR_HEIGHT * count / top) for count in counts]
    return Bars(
        width=BAR_WIDTH * len(counts),
        height=BAR_HEIGHT,
        rectangles=tuple(
            (BAR_WIDTH * number, BAR_HEIGHT - height, BAR_WIDTH - 1, height)
            for number, height in enumerate(heights)
        ),
    )
