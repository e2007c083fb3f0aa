"""What moves the weights by itself: a canary's ramp, and a bandit.

Both are functions of the experiment in force, what was counted, and the time, and say which weights come
next, if any do. A thin runner asks them in each worker; of workers that decide at once one is first, by the
allocation's primary key, and the others look again.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

import numpy as np

from router.experiment import Canary, Experiment
from router.experiments import AllocationAction, Current, Experiments, Following, Place, Stale
from router.periodic import Periodic
from verdict import multinomial, rates, sequence

LOOK_SECONDS = 5.0
# How often a canary goes back without a reason, at most: for each gate at each step, however often one looks.
ALPHA = 0.01
# Draws from the posterior. The probability that an arm is the best is known to about 1/√DRAWS.
DRAWS = 10_000
TOO_FEW_ANSWERS = "there are too few answers yet"
# An allocation that differs by less than the draws' own noise is none.
NOISE = 0.01

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sums:
    """What was counted of a variant, of requests that count alone: not forced, not while paused.

    `errors` are requests that got no answer from it: it refused them (4xx), failed (5xx), or another
    answered. `assigned` are the first of units and of batches, `apart` the first of batches, and of units in
    ten minutes; `apart_failed` of these got no answer, and `together` is Σ over them of in how many ten
    minutes before their unit got none. `log_latency` and `log_latency_squares` are sums of ln(milliseconds)
    and of its square over the `timed`, which were answered, one row of each batch. Of the matured requests
    `labelled` have an outcome, and of those it is 1 for `positives`.
    """

    requests: int = 0
    errors: int = 0
    assigned: int = 0
    apart: int = 0
    apart_failed: int = 0
    together: int = 0
    timed: int = 0
    log_latency: float = 0.0
    log_latency_squares: float = 0.0
    labelled: int = 0
    positives: int = 0


NOTHING = Sums()


@dataclass(frozen=True)
class Change:
    """The weights that are to come, and what was decided from what."""

    weights: Mapping[str, float]
    action: AllocationAction
    reason: str
    evidence: Any


@dataclass(frozen=True)
class Evidence:
    """What a gate judges by: the challenger's share, and the sums of both, in the present step."""

    canary: Canary
    share: float
    champion: Sums
    challenger: Sums

    @property
    def further(self) -> float | None:
        """The share of the next step; None after the last one."""
        return next((step for step in self.canary.steps if step > self.share + 1e-9), None)

    @property
    def few(self) -> bool:
        """Whether either of both has had less than the minimum of requests."""
        return min(self.champion.requests, self.challenger.requests) < self.canary.min_requests

    @property
    def unanswered(self) -> bool:
        """Whether either of both has answered less than that: no step is taken on what others say."""
        answered = (each.requests - each.errors for each in (self.champion, self.challenger))
        return min(answered) < self.canary.min_requests


@dataclass(frozen=True)
class Judgement:
    """What a gate says: go on to the next step, stay at this one, or go back to 0; and why."""

    says: Literal["advance", "hold", "regress"]
    reason: str
    evidence: Any = None


Gate = Callable[[Evidence], Judgement]


def errors_and_latency(evidence: Evidence) -> Judgement:
    """The gate where no guardrails are declared: the challenger's errors and latency against the champion's.

    It regresses where the challenger surely is worse by more than the document allows, with an error
    probability of ALPHA for each gate however often one looks, and advances where it seems not to be; to all
    of the traffic, which is a promotion, where it surely is not. It holds where requests do not follow the
    shares, and where there are too few answers. A request that the challenger refuses counts as an error:
    chance gives both the same ones, so if the champion takes it that is no fault of the request.
    """
    if evidence.few:
        return Judgement("hold", TOO_FEW_ANSWERS)
    gates = evidence.canary.gates
    both = (evidence.champion, evidence.challenger)
    excesses = {
        "error rate": (_difference(*map(_error_rate, both)), gates.max_error_rate_difference),
        "latency": (_difference(*map(_mean_log_latency, both)), math.log(gates.max_latency_ratio)),
    }
    n = min(each.requests for each in both)
    found = {}
    for name, (excess, allowed) in excesses.items():
        if math.isfinite(excess.error):
            radius = float(sequence.radius(excess.error, n, evidence.canary.min_requests, 2 * ALPHA))
            found[name] = {
                "difference": excess.value,
                "at_least": excess.value - radius,
                "at_most": excess.value + radius,
                "allowed": allowed,
            }
    for name, each in found.items():
        if each["at_least"] > each["allowed"]:
            return Judgement("regress", f"the challenger's {name} is worse than allowed", found)
    if objection := _objection(evidence, found):
        return Judgement("hold", objection, found)
    return Judgement("advance", "errors and latency are as allowed", found)


def _objection(evidence: Evidence, found: Mapping[str, Mapping[str, float]]) -> str:
    """The reason against a step on; an empty text where there is none."""
    # Units and batches, which chance assigned as a whole.
    counts = evidence.champion.assigned, evidence.challenger.assigned
    if multinomial.log_bayes_factor(counts, (1 - evidence.share, evidence.share)) >= -math.log(ALPHA):
        told = f"{counts[0]:,} went to the champion and {counts[1]:,} to the challenger"
        return f"the requests do not follow the configured shares: {told}"
    if evidence.unanswered:
        return TOO_FEW_ANSWERS
    for name, each in found.items():
        if each["difference"] > each["allowed"]:
            return f"the challenger's {name} seems worse than allowed"
        if evidence.further == 1 and each["at_most"] > each["allowed"]:
            return f"the challenger's {name} is not surely as allowed yet"
    return ""


def next_step(current: Current, sums: Mapping[str, Sums], now: datetime, gate: Gate) -> Change | None:
    """What a canary does now, or would do if it were not held.

    Back to 0 as soon as its gate says so; on, when the step was held as long as the document says, both
    variants have answered the minimum of requests in it, and the gate agrees. From 0 it does not go on by
    itself, and at 1 there is nothing left to compare it with.

    Args:
        current: the experiment in force.
        sums: by the name of the variant, since the present step began.
        now: the time.
        gate: judges them.
    """
    document = current.document
    champion = document.champion
    if document.mode != "canary" or current.paused or champion is None:
        return None
    challenger = document.challengers[0]
    share = current.weights[challenger.name]
    if not 0 < share < 1:
        return None
    canary = document.canary
    evidence = Evidence(canary, share, sums.get(champion.name, NOTHING), sums.get(challenger.name, NOTHING))
    judgement = gate(evidence)
    told = {
        "sums": {champion.name: asdict(evidence.champion), challenger.name: asdict(evidence.challenger)},
        "gate": judgement.evidence,
    }
    if judgement.says == "regress":
        return Change({champion.name: 1.0, challenger.name: 0.0}, "regress", judgement.reason, told)
    further = evidence.further
    waits = evidence.unanswered or now - current.since < canary.hold
    if judgement.says == "hold" or further is None or waits:
        return None
    weights = {champion.name: 1 - further, challenger.name: further}
    return Change(weights, "step", f"from {share:.4g} to {further:.4g}: {judgement.reason}", told)


def next_batch(current: Current, sums: Mapping[str, Sums], now: datetime) -> Change | None:
    """What a bandit does now, or would do if it were not held.

    Thompson sampling in batches, mixed with exploration: each variant's share is
    floor + (1 − K·floor) · P(it is the best), P by draws from the Beta posteriors of the K success rates over
    a uniform prior. That is the mixture adaptive design of Liang & Bojinov (arXiv 2311.05794, section 3) with
    δ = K·floor: what is recorded can be weighted by its propensity.

    Args:
        current: the experiment in force.
        sums: by the name of the variant, of all that was counted since its series began.
        now: the time.
    """
    document = current.document
    if document.mode != "bandit" or current.paused or now - current.since < document.bandit.update_interval:
        return None
    best = chances(document, sums)
    floor = document.bandit.floor
    weights = {name: floor + (1 - len(best) * floor) * chance for name, chance in best.items()}
    if all(abs(weights[name] - share) < NOISE for name, share in current.weights.items()):
        return None
    told = {
        "sums": {name: asdict(sums.get(name, NOTHING)) for name in best},
        "best": best,
    }
    leader = max(best, key=lambda name: best[name])
    return Change(weights, "update", f"{leader} is the best with probability {best[leader]:.3f}", told)


def chances(document: Experiment, sums: Mapping[str, Sums]) -> dict[str, float]:
    """The probability that each variant has the highest rate of successes, by its name.

    The draws are seeded by the experiment's salt: the same sums give the same chances in every worker.
    """
    seed = int.from_bytes(hashlib.sha256(b"bandit:" + document.salt.encode()).digest()[:8])
    names = [variant.name for variant in document.variants]
    successes = np.array([_successes(document, sums.get(name, NOTHING)) for name in names])
    labelled = np.array([sums.get(name, NOTHING).labelled for name in names])
    draws = np.random.default_rng(seed).beta(1 + successes, 1 + labelled - successes, (DRAWS, len(names)))
    wins = np.bincount(draws.argmax(axis=1), minlength=len(names))
    return {name: float(count) / DRAWS for name, count in zip(names, wins, strict=True)}


# Gives the sums by variant of what was recorded under the first to the last of some versions of an
# experiment, and of each under this allocation and later ones alone.
Counted = Callable[[Current, tuple[int, int], int], Mapping[str, Sums]]


class Runner:
    """Asks the controllers now and then, and adds the allocations that they decide on."""

    def __init__(
        self,
        experiments: Experiments,
        following: Following,
        counted: Counted,
        gate_of: Callable[[Current], Gate] = lambda _: errors_and_latency,
    ) -> None:
        """Nothing runs before `begin`, which is called with each request.

        Args:
            experiments: where allocations are added.
            following: the experiment in force.
            counted: the sums, from the ledger.
            gate_of: that of a canary.
        """
        self._experiments = experiments
        self._following = following
        self._counted = counted
        self._gate_of = gate_of
        self._periodic = Periodic("controllers", LOOK_SECONDS, self.look)
        self._trouble = ""
        self._would: tuple[Place, AllocationAction] | None = None
        self._judged: tuple[Place, Judgement] | None = None

    def begin(self) -> None:
        """Look now and then, in this process, from now on."""
        self._periodic.begin()

    def judged(self, current: Current) -> Judgement | None:
        """What the gate of a canary said of this state when this process looked last; None before that."""
        place, judgement = self._judged or (None, None)
        return judgement if place == current.place else None

    def look(self) -> None:
        """Decide now; what goes wrong is said once, and leaves the weights as they are."""
        try:
            self.decide(datetime.now(UTC))
        except Stale:
            pass  # Another worker was faster.
        # The database may be away, and a gate may be anybody's.
        except Exception as error:
            if repr(error) != self._trouble:
                log.warning("the weights cannot be moved: %s", error)
            self._trouble = repr(error)
        else:
            self._trouble = ""

    def decide(self, now: datetime) -> Current | None:
        """Add the allocation that is due; the state then, or None where none is.

        Raises:
            Stale: another worker has changed something meanwhile.
            DatabaseDown: the sums cannot be read, or the allocation was not taken.
        """
        current = self._following.now()
        change = self._change(current, now)
        if change is None:
            return None
        by = current.document.mode
        if current.held or (by == "canary" and current.document.canary.dry_run):
            # The reason may tell of figures, which change: what would be done is said once.
            if (would := (current.place, change.action)) != self._would:
                why = "held" if current.held else "dry run"
                log.info("%s, %s: it would %s, %s", by, why, change.action, change.reason)
            self._would = would
            return None
        made = self._experiments.allocate(
            current, change.weights, change.action, by=by, reason=change.reason, evidence=change.evidence
        )
        log.info("%s: %s", by, change.reason)
        self._following.look()
        return made

    def _change(self, current: Current, now: datetime) -> Change | None:
        if current.document.mode == "canary":
            sums = self._counted(current, (current.version, current.version), current.step.number)
            return next_step(current, sums, now, self._kept(current))
        if current.document.mode == "bandit":
            return next_batch(current, self._counted(current, (current.series, current.version), 0), now)
        return None

    def _kept(self, current: Current) -> Gate:
        """The gate of a canary, of which is kept what it says."""
        gate = self._gate_of(current)

        def ask(evidence: Evidence) -> Judgement:
            judgement = gate(evidence)
            self._judged = current.place, judgement
            return judgement

        return ask


class Estimate(NamedTuple):
    """A figure with its standard error, which is infinite where nothing is known."""

    value: float
    error: float


def _difference(one: Estimate, other: Estimate) -> Estimate:
    return Estimate(other.value - one.value, math.hypot(one.error, other.error))


def _error_rate(sums: Sums) -> Estimate:
    """With one of each added, few errors are not taken for certainty (Agresti & Caffo 2000)."""
    errors, requests = map(float, rates.alike(sums.apart_failed, sums.apart, sums.together))
    rate = (errors + 1) / (requests + 2)
    return Estimate(rate, math.sqrt(rate * (1 - rate) / (requests + 2)))


def _mean_log_latency(sums: Sums) -> Estimate:
    n = sums.timed
    if n < 2:  # noqa: PLR2004
        return Estimate(0.0, math.inf)
    mean = sums.log_latency / n
    variance = max(0.0, (sums.log_latency_squares - n * mean * mean) / (n - 1))
    return Estimate(mean, math.sqrt(variance / n))


def _successes(document: Experiment, sums: Sums) -> int:
    return sums.positives if document.bandit.success else sums.labelled - sums.positives
