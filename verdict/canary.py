"""Canaries of real clients, many side by side: how soon guardrails send a worse challenger back, or wrongly.

What is drawn are clients whom no model was trained on, with the scores that two models gave them and what
became of them. Outcomes come late, those of defaults first. At each look it is decided as
`verdict/guardrails.py` decides at a step, here by arrays over the canaries.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from verdict import multinomial, rates, sequence
from verdict.counted import score
from verdict.evidence import Guardrail, Rules
from verdict.guardrails import LEAST_RARE, LEAST_REQUESTS
from verdict.sequence import Floats
from verdict.simulate import Delays, Rows, delay, effective

# What must not become worse at all: the scores, and the share of failing requests.
RULES = Rules(guardrails=(Guardrail("scores", "brier"), Guardrail("errors", "error-rate")))
# The share of requests that fail, of both models.
FAILING = 0.01


@dataclass(frozen=True)
class Plan:
    """How a canary goes, and how it is watched.

    Attributes:
        steps: the challenger's shares one after the other, the last of them 1.
        min_requests: that both must have answered in a step to go on.
        rules: by which it is judged.
        batch: requests between two looks, after which outcomes come, too.
        looks: until which it is watched.
        rate: of defaults among the clients that come; None: as among all.
    """

    steps: tuple[float, ...] = (0.05, 0.25, 0.5, 1.0)
    min_requests: int = 500
    rules: Rules = RULES
    batch: int = 50
    looks: int = 800
    rate: float | None = None


@dataclass(frozen=True)
class State:
    """All canaries at a look, before anything is done; the champion's and the challenger's side by side.

    Attributes:
        step: the step at which each is, of shape (canaries,).
        requests: in this step, of shape (2, canaries), as the following.
        errors: of these the ones that failed.
        scores: n, Σs, Σs² of the Brier score, and Σc² and Σc³ of `Swings`, of shape (2, 7, canaries).
        back: which are sent back now.
        on: which go a step on now.
        own: how many requests the challenger has had in all.
    """

    step: Floats
    requests: Floats
    errors: Floats
    scores: Floats
    back: Floats
    on: Floats
    own: Floats


def live(rng: np.random.Generator, clients: Rows, plan: Plan, canaries: int) -> Iterator[State]:
    """Let canaries live, with a look after each batch; who was sent back or has all traffic stands still."""
    steps = np.array(plan.steps)
    step, alive, own = np.zeros(canaries, int), np.ones(canaries, bool), np.zeros(canaries)
    requests, errors, scores = np.zeros((2, canaries)), np.zeros((2, canaries)), np.zeros((2, 7, canaries))
    waiting: dict[int, list[tuple[int, Floats, Floats]]] = {}
    for look in range(plan.looks):
        rows = _drawn(rng, clients, plan.rate, (canaries, plan.batch))
        challenged = rng.random(rows.outcome.shape) < steps[step][:, None]
        failed = rng.random(rows.outcome.shape) < FAILING
        takes = delay(rng, rows.outcome, Delays())
        own = own + challenged.sum(1) * alive
        for side, (p, mine) in enumerate(((rows.champion, ~challenged), (rows.challenger, challenged))):
            requests[side] += mine.sum(1)
            errors[side] += (mine & failed).sum(1)
            loss = score("brier", p, rows.outcome)
            c = np.abs(loss - score("brier", p, 1 - rows.outcome))
            swings = [c**power * (rows.outcome == y) for y in (0, 1) for power in (2, 3)]
            for periods in np.unique(takes):
                told = mine & ~failed & (takes == periods)
                parts = (np.ones_like(loss), loss, loss * loss, *swings)
                sums = np.stack([(part * told).sum(1) for part in parts])
                waiting.setdefault(look + int(periods), []).append((side, step.copy(), sums))
        for side, asked_in, sums in waiting.pop(look, []):
            # What was asked at an earlier step is not judged at this one.
            scores[side] += sums * (asked_in == step)
        back, on = _says(plan, step, requests, errors, scores)
        back, on = back & alive, on & alive
        yield State(step.copy(), requests.copy(), errors.copy(), scores.copy(), back, on, own)
        step = step + on
        alive &= ~back & (steps[step] < 1)
        requests, errors, scores = requests * ~on, errors * ~on, scores * ~on


def _drawn(rng: np.random.Generator, clients: Rows, rate: float | None, shape: tuple[int, int]) -> Rows:
    """Clients, drawn with replacement; of those who default as many as the rate says."""
    defaulted = clients.outcome == 1
    default = rng.random(shape) < (defaulted.mean() if rate is None else rate)
    which = np.where(
        default,
        rng.choice(np.flatnonzero(defaulted), shape),
        rng.choice(np.flatnonzero(~defaulted), shape),
    )
    return Rows(*(each[which] for each in clients))


def _says(
    plan: Plan, step: Floats, requests: Floats, errors: Floats, scores: Floats
) -> tuple[Floats, Floats]:
    """Which go back, and which go on: what `guardrails.at_step` says of one."""
    rules, steps = plan.rules, np.array(plan.steps)
    alpha = rules.guardrail_alpha / len(plan.steps) / len(rules.guardrails)
    bound, margins = -math.log(alpha), [each.margin for each in rules.guardrails]
    n, total, squares = scores[:, 0], scores[:, 1], scores[:, 2]
    mean = total / np.maximum(n, 1)
    spread = np.maximum(squares - n * mean * mean, 0)
    error = np.sqrt((spread / np.maximum(n - 1, 1) / np.maximum(n, 1)).sum(0))
    harm, outcomes = mean[1] - mean[0], n.sum(0)
    rare = effective(spread, *(scores[:, places].swapaxes(0, 1) for places in ((3, 5), (4, 6))))
    known = (outcomes >= rules.min_outcomes) & (n > 1).all(0) & (error > 0) & (rare >= LEAST_RARE).all(0)
    error = np.where(known, error, np.inf)
    failed = (errors[0], requests[0]), (errors[1], requests[1])

    def of_scores(excess: Floats) -> Floats:
        found = sequence.log_e_value_above(excess, error, outcomes, rules.n_star, alpha)
        return np.where(known, found, 0.0)

    breached = of_scores(harm - margins[0]) >= bound
    breached |= rates.log_e_value_of_excess(*failed, margins[1]) >= bound
    back = breached & (requests[1] >= LEAST_REQUESTS)
    failing = errors / np.maximum(requests, 1)
    agreed = known & (harm <= margins[0]) & (failing[1] - failing[0] <= margins[1])
    # With all of the traffic nobody stands at a step.
    share = np.where(steps[step] < 1, steps[step], 0.5)
    ratio = multinomial.log_bayes_factor(requests.T, np.stack([1 - share, share], axis=-1))
    agreed &= ratio < -math.log(rules.trust_alpha)
    # The upper ends are within the margins where what is as far below has an e-value as great.
    clear = of_scores(margins[0] - harm) >= bound
    clear &= rates.log_e_value_of_difference(*failed, margins[1]) >= bound
    agreed &= clear | (steps[np.minimum(step + 1, len(steps) - 1)] < 1)
    return back, ~back & agreed & ((requests - errors).min(0) >= max(plan.min_requests, 1))


@dataclass(frozen=True)
class Sent:
    """After how many requests each canary was sent back, infinite where it was not, of shape (canaries,).

    Attributes:
        requests: of both models.
        own: of these the challenger's.
    """

    requests: Floats
    own: Floats


def sent_back(clients: Rows, plan: Plan, canaries: int) -> Sent:
    """When guardrails sent canaries back."""
    requests, own = np.full(canaries, np.inf), np.full(canaries, np.inf)
    states = live(np.random.default_rng(15), clients, plan, canaries)
    for look, state in enumerate(states, start=1):
        requests = np.where(state.back, look * plan.batch, requests)
        own = np.where(state.back, state.own, own)
    return Sent(requests, own)


# Planned for as many outcomes as by default.
USUAL = Plan()
# What an asymptotic guardrail stands worst: it is sharpest at its first outcomes, half of the requests are
# the challenger's, and one looks often.
HASTY = Plan(steps=(0.5, 1.0), rules=replace(RULES, n_star=100), batch=10, looks=400)
