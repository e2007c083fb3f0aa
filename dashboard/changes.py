"""What changes of an experiment would do, and how they are undone; pure functions on the router's answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dashboard.acting import Proposal, proposal

Answer = dict[str, Any]
Weights = Mapping[str, float]

EXPERIMENT = "/v1/experiment"
# Differences shown of a document: the rest is counted.
MOST_DIFFERENCES = 12
# What becomes of the traffic, by the mode.
MODES = {
    "split": "each variant gets its share of the traffic",
    "shadow": "the champion answers, challengers score the same requests unseen: "
    "pairs, which take far fewer outcomes than a split",
    "canary": "a challenger is ramped up by steps while its guardrails agree",
    "bandit": "each variant gets the probability that it is the best",
}
# A list that is empty says as much as one that is not there.
NOTHING: tuple[Any, ...] = (None, [], {})


def shares(document: Answer) -> dict[str, float] | None:
    """The shares that a document begins with; None where its mode sets them by itself."""
    weights = {each["name"]: each.get("weight") or 0.0 for each in document["variants"]}
    total = sum(weights.values())
    if document["mode"] != "split" or not total:
        return None
    return {name: weight / total for name, weight in weights.items()}


def champion(document: Answer) -> str | None:
    """The name of the champion, None where there is none."""
    return next((each["name"] for each in document["variants"] if each["role"] == "champion"), None)


def percent(share: float) -> str:
    """A share as people write it, exact to a tenth of a percentage point."""
    return f"{100 * share:.1f}".rstrip("0").rstrip(".") + "%"


def told(before: Weights, after: Weights, per_hour: int) -> list[str]:
    """What other weights mean: a line for each variant, those that get more first.

    Args:
        before: the shares in force, by variant.
        after: those that are proposed.
        per_hour: requests that came in the last hour.
    """
    lines = []
    for name in sorted(after, key=lambda name: before.get(name, 0) - after[name]):
        old, new = before.get(name, 0.0), after[name]
        count = round(abs(new - old) * per_hour)
        if abs(new - old) < 1e-9:  # noqa: PLR2004
            effect = "as before"
        elif not per_hour:
            effect = "nothing came in the last hour"
        else:
            effect = f"about {count:,} {'more' if new > old else 'fewer'} requests an hour"
        lines.append(f"{name} {percent(old)} → {percent(new)}: {effect}")
    return lines


def ramp(state: Answer, variant: str, share: float, per_hour: int) -> Proposal:
    """Give a variant another share; the others share the rest in proportion."""
    weights = state["weights"]
    others = {name: weight for name, weight in weights.items() if name != variant}
    total = sum(others.values())
    after = {variant: share} | {
        name: (1 - share) * (weight / total if total else 1 / len(others)) for name, weight in others.items()
    }
    return proposal(
        f"Ramp {variant} to {percent(share)}",
        told(weights, after, per_hour),
        "POST",
        f"{EXPERIMENT}/ramp",
        {"variant": variant, "share": share},
        version=state["version"],
    )


def pause(state: Answer, document: Answer, per_hour: int) -> Proposal:
    """Send all to the champion, without one to the variant that is named first."""
    first = champion(document) or document["variants"][0]["name"]
    after = {name: float(name == first) for name in state["weights"]}
    return proposal(
        "Pause the experiment",
        [*told(state["weights"], after, per_hour), "While it is paused, nothing counts for the verdict."],
        "POST",
        f"{EXPERIMENT}/pause",
        {},
        version=state["version"],
    )


def hold(state: Answer) -> Proposal:
    """Keep the weights that are in force."""
    lines = ["Nothing moves the shares by itself until it is resumed; everything still counts."]
    return proposal("Hold the experiment", lines, "POST", f"{EXPERIMENT}/hold", {}, version=state["version"])


def resume(state: Answer, before: Weights | None, per_hour: int) -> Proposal:
    """End a pause or a hold, with the weights of before, where they are known."""
    lines = (
        told(state["weights"], before, per_hour) if before else ["The weights of before are in force again."]
    )
    return proposal(
        "Resume the experiment", lines, "POST", f"{EXPERIMENT}/resume", {}, version=state["version"]
    )


def promote(state: Answer, document: Answer, variant: str, per_hour: int) -> Proposal:
    """Make a variant the champion, with all of the traffic."""
    after = {name: float(name == variant) for name in state["weights"]}
    old = champion(document)
    return proposal(
        f"Promote {variant}",
        [
            f"{variant} becomes the champion"
            + (f", {old} a challenger." if old not in (None, variant) else "."),
            *(told(state["weights"], after, per_hour) if document["mode"] != "shadow" else []),
        ],
        "POST",
        f"{EXPERIMENT}/promote",
        {"variant": variant},
        version=state["version"],
        override=True,
    )


def replace(state: Answer, old: Answer, new: Answer, per_hour: int, title: str | None = None) -> Proposal:
    """Make another document the next version."""
    after = shares(new) if isinstance(new.get("variants"), list) and _is_whole(new) else None
    moved = told(state["weights"], after, per_hour) if after and after != state["weights"] else []
    return proposal(
        title or f"Set version {state['version'] + 1} of the document",
        [
            *moved,
            *(lines(old, new) or ["Nothing in the document is different."]),
        ],
        "PUT",
        EXPERIMENT,
        new,
        version=state["version"],
        in_query=True,
    )


def ends(proposed: Any) -> Answer | None:
    """The question to the router about a change that may end a phase; None for one that ends none."""
    if not isinstance(proposed, dict):
        return None
    if proposed["method"] == "PUT":
        return {"document": proposed["body"]}
    if proposed["path"] == f"{EXPERIMENT}/promote":
        return {"promote": proposed["body"]["variant"]}
    return None


def switch(state: Answer, document: Answer, mode: str, per_hour: int) -> Proposal:
    """Put the experiment into another mode, with what the document holds for that; all else stays.

    Where it has no weights for a split, the shares in force are taken.
    """
    new = document | {"mode": mode}
    if mode == "split" and any(each.get("weight") is None for each in document["variants"]):
        new["variants"] = [
            each | {"weight": state["weights"].get(each["name"], 0.0)} for each in document["variants"]
        ]
    title = f"Switch from {document['mode']} to {mode}"
    proposed = replace(state, document, new, per_hour, title)
    after = _first_shares(new)
    moved = told(state["weights"], after, per_hour) if after and mode != "split" else []
    means = f"{mode.capitalize()}: {MODES[mode]}."
    differences = [means, *moved, *proposed["differences"]]
    return proposed | {"differences": differences}


def _first_shares(document: Answer) -> dict[str, float] | None:
    """The shares with which a mode begins that sets them by itself; None where there is no champion."""
    names, first = [each["name"] for each in document["variants"]], champion(document)
    if document["mode"] == "bandit":
        return dict.fromkeys(names, 1 / len(names))
    if first is None:
        return None
    others = document["canary"]["steps"][0] if document["mode"] == "canary" else 0.0
    return {name: 1 - others if name == first else others for name in names}


def undo(entries: Sequence[Answer], state: Answer, per_hour: int) -> Proposal | None:
    """What takes the newest entry of the audit back; None where nothing was before it.

    Args:
        entries: of the audit, oldest first.
        state: in force.
        per_hour: requests that came in the last hour.
    """
    documents = [entry["document"] for entry in entries if entry["document"]]
    if not documents:
        return None
    # Weights that were carried along with a new document go back with it.
    *earlier, last = entries[:-1] if entries[-1]["action"] == "carry" else entries
    before = _weights_before(earlier, last)
    taken_back: Proposal | None = None
    if last["action"] in ("pause", "hold"):
        taken_back = resume(state, before, per_hour)
    elif last["action"] == "resume" and earlier and earlier[-1]["action"] == "hold":
        taken_back = hold(state)
    elif last["action"] == "resume":
        taken_back = pause(state, documents[-1], per_hour)
    elif last["document"] is None and before:
        taken_back = _ramp_back(state, before, champion(documents[-1]), per_hour)
    elif last["document"] and len(documents) > 1:
        taken_back = replace(state, documents[-1], documents[-2], per_hour, "Set the document of before")
    if taken_back is None:
        return None
    title = taken_back["title"]
    return taken_back | {"title": f"Undo: {title[0].lower()}{title[1:]}"}


def _ramp_back(state: Answer, before: Weights, first: str | None, per_hour: int) -> Proposal | None:
    """Give the variant whose share has changed most its share of before; the champion takes the rest."""
    others = [name for name in before if name != first and name in state["weights"]]
    moved = max(others, key=lambda name: abs(before[name] - state["weights"][name]), default=None)
    return ramp(state, moved, before[moved], per_hour) if moved else None


def _weights_before(earlier: Sequence[Answer], last: Answer) -> Weights | None:
    """The weights in force before an entry, but for those of a pause."""
    for entry in reversed(earlier):
        if entry["version"] != last["version"] or entry["action"] == "pause":
            continue
        return entry["weights"] or (shares(entry["document"]) if entry["document"] else None)
    return None


def lines(old: Any, new: Any, most: int = MOST_DIFFERENCES) -> list[str]:
    """What is different in two documents, a line each, at most so many; the rest is counted."""
    found = [f"{name}: {short(before)} → {short(after)}" for name, before, after in differences(old, new)]
    more = len(found) - most
    return [*found[:most], *([f"and {more} more"] if more > 0 else [])]


def differences(old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    """What is different in two documents: where, before, after; variants and guardrails go by their name.

    What is added or taken away of a list of them is one difference, and so is each field of one that stays.
    """
    return [*_differences(old, new, "")]


def _differences(old: Any, new: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    if any(isinstance(each, dict) for each in (old, new)) and all(_is(dict, each) for each in (old, new)):
        yield from _compared(old or {}, new or {}, f"{name}." if name else "", whole=False)
    elif _is_of_objects(old, new):
        yield from _compared(_by_name(old or []), _by_name(new or []), f"{name} ", whole=True)
    elif old != new and not (old in NOTHING and new in NOTHING):
        yield name, old, new


def _compared(old: Answer, new: Answer, prefix: str, *, whole: bool) -> Iterator[tuple[str, Any, Any]]:
    """The differences by key; where one side has no such key, of the `whole`, if so, or of its parts."""
    for key in dict.fromkeys([*old, *new]):
        if whole and not (key in old and key in new):
            yield f"{prefix}{key}", old.get(key), new.get(key)
        else:
            yield from _differences(old.get(key), new.get(key), f"{prefix}{key}")


def _is(kind: type, value: Any) -> bool:
    return value is None or isinstance(value, kind)


def _is_of_objects(*values: Any) -> bool:
    """Whether all that is there are lists of objects, and not all of them are empty."""
    items = [item for value in values if isinstance(value, list) for item in value]
    return (
        all(_is(list, value) for value in values) and bool(items) and all(isinstance(i, dict) for i in items)
    )


def _by_name(items: Sequence[Answer]) -> Answer:
    return {str(each.get("name", each.get("column", number))): each for number, each in enumerate(items)}


def _is_whole(document: Answer) -> bool:
    """Whether its variants can be read; the router checks the rest."""
    return "mode" in document and all(
        isinstance(each, dict)
        and isinstance(each.get("name"), str)
        and isinstance(each.get("weight", 0) or 0, int | float)
        for each in document["variants"]
    )


def short(value: Any) -> str:
    """A value of a document in a few letters; an object by its fields that say something."""
    if isinstance(value, dict) and value:
        fields = {name: each for name, each in value.items() if name != "name" and each not in NOTHING}
        return ", ".join(f"{name} {short(each)}" for name, each in fields.items()) or "there"
    text = "none" if value in NOTHING else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"  # noqa: PLR2004


def figure(told: Any) -> float | None:
    """The number of a metric, which may have an interval around it; None where there is none."""
    if isinstance(told, dict):
        told = told.get("value", told.get("mean"))
    return float(told) if isinstance(told, int | float) else None


def with_interval(told: Any) -> str:
    """A metric in words, with its interval, where it has one."""
    value = figure(told)
    if value is None:
        return "–"
    if isinstance(told, dict) and "lower" in told and "upper" in told:
        return f"{value:.3f} ({told['lower']:.3f} to {told['upper']:.3f})".replace("-", "−")
    return f"{value:.3f}".replace("-", "−")


def number(value: Any) -> str:
    """A value of a record in a few letters."""
    return f"{value:.4g}".replace("-", "−") if isinstance(value, float) else short(value)
