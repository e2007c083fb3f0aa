"""Shows by simulation that the verdict keeps its promises: `make validate` writes docs/validation.md."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier

from data import credit
from verdict import missing, plan
from verdict.canary import FAILING, HASTY, USUAL, Sent, sent_back
from verdict.guardrails import LEAST_RARE
from verdict.harness import (
    ALPHA,
    CHECKED,
    COSTLIER,
    FEWER,
    GAP,
    NEARLY,
    PAIR,
    PAIRED,
    PAIRS,
    PER_PERIOD,
    PERIOD_DAYS,
    PERIODS,
    ROWS_BETWEEN,
    RULES,
    Delayed,
    Pairing,
    Power,
    Rate,
    Sharp,
    Size,
    armitage,
    believed,
    broken,
    canaries,
    delayed,
    delayed_type_one,
    distrust,
    growthbook,
    naive,
    pairing,
    power,
    sample_ratio,
    sharpness,
    type_one,
)
from verdict.sequence import Floats
from verdict.settings import BEFORE, ERRORS, FURTHER, GUARDRAILS, WEIGHTS, Rates, Setting, wrong
from verdict.simulate import Rows
from verdict.witnesses import TOGETHER, UNNAMED, WITNESSES, distrusted
from verdict.witnesses import wrong as wrong_of

LONG = Size(streams=2000, looks=200, batch=100)


def report(environment: Path | None, say: Callable[[str], None]) -> str:
    """The whole document; takes some minutes."""
    parts: list[str] = []

    def timed(name: str, work: Callable[[], str]) -> None:
        begin = time.monotonic()
        parts.append(work())
        say(f"{name}: {time.monotonic() - begin:.0f} s")

    timed("type I error", lambda: _type_one_text(type_one(LONG)))
    timed("where standard errors mislead", lambda: _settings_text(2000))
    timed("units and batches as clusters", lambda: _witnesses_text(2000))
    timed("missing answers and outcomes", lambda: _missing_text(2000))
    timed("naive", lambda: _naive_text(naive(LONG), armitage(20_000)))
    timed("late outcomes", lambda: _delayed_text(*delayed(2000), delayed_type_one(2000)))
    timed(
        "trust checks and guardrails",
        lambda: _guard_text(*sample_ratio(2000), distrust(10_000), canaries(2000, 1000), broken()),
    )
    timed("canaries of real clients", lambda: _canary_text(*canaries_of_clients(2000)))
    timed("exact intervals", lambda: _sharp_text(sharpness(200)))
    timed("power", lambda: _power_text(power(2000, 200, environment), pairing()))
    return HEAD + "\n".join(parts)


HEAD = """# What the verdict promises, and what was simulated

Written by `make validate`. Streams are simulated clients whose defaults two models predict
(`verdict/simulate.py`), or clients of the data set where that is said; the harness is `verdict/harness.py`,
and `verdict/canary.py`. Seeds are fixed: the same versions of numpy, scipy and scikit-learn give the same
figures. Intervals are Clopper & Pearson's, 95 %.

"""


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _met(goal: bool) -> str:
    return "met" if goal else "**missed**"


def _rates(found: Sequence[Rate], bound: float | None) -> str:
    lines = [
        "| | streams | share | interval |" + (" |" if bound else ""),
        "| --- | ---: | ---: | --- |" + (" --- |" if bound else ""),
    ]
    for each in found:
        low, high = each.ends
        ends = f"{_percent(low)} to {_percent(high)}"
        line = f"| {each.name} | {each.streams:,} | {_percent(each.share)} | {ends} |"
        if bound:
            line += " kept |" if high <= bound else " **missed** |"
        lines.append(line)
    return "\n".join(lines) + "\n"


def _type_one_text(found: Sequence[Rate]) -> str:
    return f"""## False winners

Both models are equally good. The share of streams in which the verdict ever names a winner, with a look after
each of {LONG.looks} batches of {LONG.batch} rows; α is 5 %, and kept where the upper end is not above it.
Repeated units come again, at up to ten looks one after the other, and with up to three rows at each.

{_rates(found, 0.05)}"""


def _before_and_now(found: Iterable[Rates], bound: float) -> str:
    lines = ["| | before | now | interval | |", "| --- | ---: | ---: | --- | --- |"]
    for before, now in found:
        low, high = now.ends
        kept = "kept" if high <= bound else "**missed**"
        shares = f"{_percent(before.share)} | {_percent(now.share)}"
        lines.append(f"| {now.name} | {shares} | {_percent(low)} to {_percent(high)} | {kept} |")
    return "\n".join(lines) + "\n"


def _settings_text(streams: int) -> str:
    def table(settings: Sequence[Setting]) -> str:
        return _before_and_now((wrong(each, streams) for each in settings), ALPHA)

    least = f"{RULES.min_each} of the rarer outcome"
    return f"""## Where standard errors mislead

Two models that are equally good and not alike: on few rows they say what differs, and seldom does the outcome
come on which all of the difference hangs (`verdict/settings.py`). {streams:,} streams for each line; looks
after 200 batches of 100 rows, where nothing else is said; one plans for {RULES.n_star:,} outcomes.

*Before* is how often it happens where {BEFORE} of the rarer outcome of all rows are asked for, and none for a
p-value and by guardrails, and rows count by their inverse propensity. *Now* a standard error is one where
the outcomes tell as much as {least}, by guardrails {LEAST_RARE} in each arm
([decision 0015](decisions/0015-the-verdicts-statistics.md)), and rows count by overlap; the interval is of
that. α is 5 %, of a guardrail that of one at one step.

A winner is named, or a p-value below .05 is shown at any look:

{table(ERRORS)}
A guardrail sends a challenger back that does no harm:

{table(GUARDRAILS)}
A winner is named where shares change:

{table(WEIGHTS)}
And in further settings:

{table(FURTHER)}"""


def _witnesses_text(streams: int) -> str:
    [unnamed] = [wrong_of(each, streams).now for each in UNNAMED]
    low, high = unnamed.ends
    return f"""## Units and batches as clusters

Two models that are equally good and not alike, and rows that are not independent (`verdict/witnesses.py`).
{streams:,} streams for each line; looks after 200 batches of about 100 rows, of units that ask a lot 500.
*Before* each row of a batch was a witness by itself, and of a unit the newest {TOGETHER} rows were counted
together. *Now* all rows of a unit, and of a batch, are one
([decision 0020](decisions/0020-who-is-a-witness.md)). A winner is named:

{_before_and_now((wrong_of(each, streams) for each in WITNESSES), ALPHA)}
The check of propensities fails without cause, at an α of {100 * RULES.trust_alpha:g} %:

{_before_and_now([distrusted(WITNESSES[0], streams)], RULES.trust_alpha)}
Who asks again without a unit is taken for somebody else. Where 2 % of the requests are tried again five times
a winner is then named in {_percent(unnamed.share)} of the streams ({_percent(low)} to {_percent(high)}): α is
not kept, and the check *witnesses* says which requests have a unit.
"""


def _missing_text(streams: int) -> str:
    lines = ["| | before | now | interval | |", "| --- | ---: | ---: | --- | --- |"]
    for setting in missing.WRONG:
        before, now = missing.wrong(setting, streams)
        low, high = now.ends
        shares = f"{_percent(before.share)} | {_percent(now.share)}"
        ends = f"{_percent(low)} to {_percent(high)} | {'kept' if high <= ALPHA else '**missed**'}"
        lines.append(f"| {setting.name} | {shares} | {ends} |")
    found = [missing.found(setting, streams // 10) for setting in missing.FOUND]
    when = "\n".join(
        f"| {each.name} | {'never' if each.before == math.inf else f'{each.before:,.0f}'} | {each.now:,.0f} |"
        for each in found
    )
    false = [rate for setting in missing.NOT_FAILING for rate in missing.failing(setting, streams)]
    wrongly = "\n".join(lines)
    return f"""## Missing answers and outcomes

Two models that are equally good over all rows, of which one gives no answer to some of them, or loses
outcomes (`verdict/missing.py`). {streams:,} streams for each line; looks after 200 batches of 100 rows; one
plans for {RULES.n_star:,} outcomes. *Before* {_percent(missing.BEFORE)} of pairs might be missing, and
outcomes that are known were counted. *Now* it is as [decision 0021](decisions/0021-what-is-missing.md) says.

A winner is named:

{wrongly}

After how many rows half of {streams // 10} streams have a check that fails, where this is missing:

| | before | now |
| --- | ---: | ---: |
{when}

How often a check ever fails where nothing is missing that should not be, at an α of
{100 * RULES.trust_alpha:g} %:

{_rates(false, RULES.trust_alpha)}"""


def _naive_text(found: Sequence[Rate], peeks: Sequence[tuple[int, float, Rate]]) -> str:
    lines = "\n".join(
        f"| {looks} | {told:.4f} | {rate.share:.4f} | {rate.ends[0]:.4f} to {rate.ends[1]:.4f} |"
        for looks, told, rate in peeks
    )
    return f"""## What fails without the rules

The same streams, judged as is usual:

{_rates(found, None)}
The usual test at 5 %, looked at so many times. Armitage, McPherson & Rowe (1969) print .05, .0831, .1417,
.1934 and .2479.

| looks | exact (`verdict/sequential.py`) | counted in {peeks[0][2].streams:,} streams | interval |
| ---: | ---: | ---: | --- |
{lines}
"""


def _delayed_text(truth: float, found: Sequence[Delayed], false: Sequence[tuple[Rate, Rate]]) -> str:
    lines = "\n".join(
        f"| {each.rule} | {_percent(each.better.share)} | {_percent(each.worse.share)} | "
        f"{_percent(each.worse.ends[0])} to {_percent(each.worse.ends[1])} |"
        for each in found
    )
    days = [day for day in (30, 60, 90, 120, 180, 240) if any(day in each.seen for each in found)]
    shown = "\n".join(
        f"| {day} | "
        + " | ".join(f"{each.seen[day]:+.5f}" if day in each.seen else "none yet" for each in found)
        + " |"
        for day in days
    )
    return f"""## Late outcomes

A default shows 10 to 60 days after the request, that there is none after 90: that is the maturity. The
champion's scores are too high, so it is the worse model: its Brier score truly is {truth:.5f} higher.
{PER_PERIOD // PERIOD_DAYS} requests a day, a look every {PERIOD_DAYS} days for {PERIODS * PERIOD_DAYS} days,
in shadow mode.

| what counts | names the better model | keeps the worse one | interval of that |
| --- | ---: | ---: | --- |
{lines}

The difference in Brier score, champion less challenger, on average as it is seen on a day:

| day | all outcomes so far | matured requests alone |
| ---: | ---: | ---: |
{shown}

Now the challenger's scores are too low by as much as makes both Brier scores the same. How often a winner is
named, without the maturity rule, which must fail:

{_rates([naive for naive, _ in false], None)}
and with it, at an α of 5 %:

{_rates([patient for _, patient in false], 0.05)}"""


def _guard_text(
    median: float,
    false: Rate,
    distrusted: Sequence[Rate],
    tripped: Sequence[Rate],
    found: Sequence[tuple[str, float, float]],
) -> str:
    lines = "\n".join(
        f"| {name} | {f'{when:,.0f}' if when < math.inf else 'more than 2,000'} | {_percent(share)} |"
        for name, when, share in found
    )
    return f"""## Trust checks and guardrails

A true split of 52 : 48 instead of 50 : 50 is found after {median:,.0f} requests in the median, by Lindon &
Malek's test with a look every 100 requests and an α of 5 %.

{_rates([false], 0.05)}
How often a check ever says "don't trust" without cause, at an α of {100 * RULES.trust_alpha:g} % and with
{CHECKED} looks, one every {ROWS_BETWEEN} rows. That of propensities waits for {RULES.min_outcomes} rows of
each arm.

{_rates(distrusted, RULES.trust_alpha)}
Canaries at 5 % of the traffic, one guardrail, α of 5 %: how often it ever trips without harm.

{_rates(tripped, 0.05)}
How many requests of its own a broken challenger gets until the guardrail of the error rate trips, at a margin
of 0 and against 1 % of errors of the champion, with a look after every ten of them:

| challenger | median | found within 2,000 |
| --- | ---: | ---: |
{lines}
"""


def held_out() -> tuple[Rows, Rows]:
    """Real clients whom no model was trained on: scored twice by one model, and by it and a useless one.

    The useless one is the same kind of model, trained on labels that belong to other clients.
    """
    training, rest = credit.split(credit.load())
    labels = training[credit.TARGET].to_numpy()
    scores = []
    for told in (labels, np.random.default_rng(1).permutation(labels)):
        model = HistGradientBoostingClassifier(learning_rate=0.05, max_leaf_nodes=6, random_state=1)
        model.fit(training[list(credit.FEATURES)], told)
        scores.append(model.predict_proba(rest[list(credit.FEATURES)])[:, 1])
    outcomes = rest[credit.TARGET].to_numpy().astype(float)
    return Rows(scores[0], scores[0], outcomes), Rows(scores[0], scores[1], outcomes)


def canaries_of_clients(streams: int) -> tuple[Rows, list[Rate], list[tuple[str, Sent]]]:
    """The clients beside a useless challenger, identical challengers sent back, and when that one is."""
    same, useless = held_out()
    false = []
    for name, chosen in (("from 5 % on", USUAL), ("planned for 100 outcomes", HASTY)):
        for rate in (None, 0.08, 0.01):
            sent = sent_back(same, replace(chosen, rate=rate), streams)
            told = _percent(float(same.outcome.mean()) if rate is None else rate)
            count = int(np.isfinite(sent.requests).sum())
            false.append(Rate(f"{name}, {told} defaults", count, streams))
    halves = replace(USUAL, steps=HASTY.steps)
    found = [
        (f"from {100 * chosen.steps[0]:g} % on", sent_back(useless, chosen, streams))
        for chosen in (USUAL, halves)
    ]
    return useless, false, found


def _canary_text(clients: Rows, false: Sequence[Rate], found: Sequence[tuple[str, Sent]]) -> str:
    losses = [float(((p - clients.outcome) ** 2).mean()) for p in (clients.champion, clients.challenger)]

    def within(requests: Floats, share: float) -> str:
        most = float(np.quantile(requests, share, method="inverted_cdf"))
        return f"{most:,.0f}" if most < math.inf else "never"

    lines = "\n".join(
        f"| {name} | {_percent(float(np.isfinite(sent.requests).mean()))} | "
        + " | ".join(within(each, share) for each in (sent.requests, sent.own) for share in (0.5, 0.95))
        + " |"
        for name, sent in found
    )
    steps = " → ".join(f"{100 * share:g} %" for share in USUAL.steps)
    watched = USUAL.looks * USUAL.batch
    return f"""## Canaries of real clients

The {len(clients.outcome):,} clients of the data set whom no model was trained on, drawn with replacement,
with the scores of gradient-boosted trees. Two guardrails at a margin of 0: the Brier score, and errors, of
which both have {_percent(FAILING)}. A look every {USUAL.batch} requests, for {watched:,} requests; outcomes
come one to nine looks late, defaults first. Steps are {steps}, each until both have
had {USUAL.min_requests} requests and no guardrail objects, and the last one until each is clear: at a margin
of 0 only who surely is better gets there. *Planned for 100 outcomes* is the worst case of an
asymptotic guardrail: it is at its sharpest at once, half of the traffic is the challenger's, and one looks
every {HASTY.batch} requests, {HASTY.looks} times.

A challenger that is the same model: how often it is ever sent back, at an α of 5 %.

{_rates(false, 0.05)}
A challenger that was trained on shuffled labels, so that its Brier score is {losses[1]:.3f} instead of
{losses[0]:.3f}: how many requests it takes until it is sent back.

| | sent back | requests, median | 95 % of canaries | its own, median | 95 % of canaries |
| --- | ---: | ---: | ---: | ---: | ---: |
{lines}
"""


def _sharp_text(found: Sequence[Sharp]) -> str:
    lines = "\n".join(f"| {each.name} | {each.width:.2f} |" for each in found)
    by_name = {each.name: each.width for each in found}
    times = by_name["both are declared"] / by_name["hedged betting"]
    return f"""## How wide exact intervals are

The half-width after {PAIRS:,} pairs of clients of whom {_percent(PAIRED.rate)} default, with a `max_gap` of
{GAP:g}, in parts of that of the asymptotic interval that is planned for as many. Where nothing is declared
{RULES.n_star:,} are planned. *Hedged betting* (Waudby-Smith & Ramdas 2024) needs all pairs at each look, ours
Σd and Σd².

| | half-width |
| --- | ---: |
{lines}

With both declared it is {times:.2f} times as wide as that of betting. The goal is {NEARLY} at most:
{_met(times <= NEARLY)}.
"""


def _power_text(found: Sequence[Power], pairs: Sequence[Pairing]) -> str:
    by_name = {each.name: each for each in found}
    lines = "\n".join(
        f"| {each.name} | {each.fixed:,.0f} | {each.expected:,.0f} | "
        f"{'' if each.theory is None else f'{each.expected / each.theory:.2f}'} | "
        f"{'' if each.right is None else _percent(each.right.share)} |"
        for each in found
    )
    mine = by_name["shadow, the verdict"].expected
    peers = [each for each in found if each.name.startswith("split") and "the verdict" not in each.name]
    best = min(peers, key=lambda each: each.expected)
    times = best.expected / mine
    ours = by_name["split, the verdict"]
    assert ours.theory is not None
    ratio = ours.expected / ours.theory
    saved = "\n".join(
        f"| {each.correlation} | {each.scores:.4f} | {each.paired:,.0f} | {each.unpaired:,.0f} | "
        f"{each.unpaired / each.paired:,.0f} |"
        for each in pairs
    )
    cost = found[1].expected / found[1].fixed
    [alike] = [each for each in pairs if each.correlation == PAIR.correlation]
    lost = (
        ""
        if any("GrowthBook" in each.name for each in found)
        else " GrowthBook's test could not be installed."
    )
    return f"""## How many outcomes a decision takes

Simulated credit scores: {_percent(PAIR.rate)} defaults, an AUC of {PAIR.champion} against
{PAIR.challenger}; both models' Brier scores of a client correlate {alike.scores:.3f}, which they do where
what the models see correlates {PAIR.correlation}. Decided by the Brier score, at 5 %, planned for a power of
80 %. *Fixed* is the sample for one look, and the n_star of the verdict. *Mean* is over streams; those
undecided at {plan.FURTHEST:.0f} times the fixed sample count as that. *To theory* is the mean over the
mixture bound's expectation by numerical integration. Splits are halves, and their outcomes those of both arms
together. Such a stream takes millions of rows, so the sums of its batches are drawn by the central limit
theorem; those of the shadow design are from single rows.{lost}

| design and test | fixed | mean | to theory | right |
| --- | ---: | ---: | ---: | ---: |
{lines}

- A decision in shadow mode takes 1/{times:,.0f} of the outcomes of the best unpaired peer
  ({best.name}). The goal is 1/{FEWER} at most: {_met(times >= FEWER)}.
- Unpaired, the verdict takes {ratio:.2f} times the mixture bound's expectation. The goal is {COSTLIER} at
  most: {_met(ratio <= COSTLIER)}.
- A standard error of these pairs is believed from {believed():,.0f} of them on.
- In shadow mode peeking costs {cost:.2f} times the fixed sample on average, and goes on until there is a
  decision. One look, and group sequential tests, leave one difference in five undecided.

What pairs save depends on how alike both models score. The same two models, one look, by the correlation of
what both see among clients with the same outcome, and of the Brier scores that follow:

| what both see | Brier scores | pairs | outcomes of a split | times |
| ---: | ---: | ---: | ---: | ---: |
{saved}
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the document."""
    parser = argparse.ArgumentParser(prog="python -m verdict.validate", description=__doc__)
    parser.add_argument("--write", type=Path, help="the document; by default it is printed")
    parser.add_argument("--peers", type=Path, default=Path("var/gbstats"), help="GrowthBook's environment")
    parser.add_argument("--no-peers", action="store_true", help="leave GrowthBook out")
    chosen = parser.parse_args(arguments)
    environment = None if chosen.no_peers else chosen.peers
    if environment is not None:
        growthbook(environment)
    text = report(environment, lambda line: print(line, file=sys.stderr, flush=True))
    if chosen.write:
        chosen.write.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
