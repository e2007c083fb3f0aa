"""Model cards: what is known of a version, on one page, in Markdown or in HTML that needs no network.

After Mitchell et al., "Model Cards for Model Reporting", FAT* 2019 (DOI 10.1145/3287560.3287596), section 4;
everything on the card travels with the version.
"""

from __future__ import annotations

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
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = _cell
    environment.filters["allowed"] = _allowed
    return environment.get_template(f"card.{form}").render(
        version=version,
        record=version.record,
        # The costliest column first: kept in YAML, they come back by name.
        importance=sorted(version.record.get("importance", {}).items(), key=lambda each: -each[1]["mean"]),
        titles=METRICS,
        golden=golden,
        reference=reference,
        bars=_bars if reference else None,
        releases=releases,
    )


def _cell(value: Any) -> str:
    """A value that does not break a Markdown table."""
    return str(value).replace("|", "\\|").replace("\n", " ")


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
