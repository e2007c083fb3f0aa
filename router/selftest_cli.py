"""`runoff selftest`: whether the experiment as it is configured would be judged rightly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import click
from rich.progress import Progress

from router.experiment import Experiment as Document
from router.experiment import ExperimentError, load
from router.verdicts import roles, rules
from runoff.cli import as_json, console, examples, say_json, say_table
from verdict import selftest as selftests
from verdict.guardrails import LATENCY
from verdict.plan import DAY
from verdict.selftest import CHALLENGER, CHAMPION, SAME, Better, Experiment, Result
from verdict.words import METRICS, figure


@click.command(
    epilog=examples(
        "runoff selftest", "runoff selftest --config experiment.toml --streams 400 --outcomes 20000"
    )
)
@click.option(
    "--config",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The document. Default: that of the router.",
)
@click.option(
    "--streams",
    type=click.IntRange(1),
    default=50,
    show_default=True,
    help="Simulated experiments in each scenario.",
)
@click.option(
    "--outcomes",
    type=click.IntRange(100),
    help="Outcomes in each simulated experiment. Default: planned_outcomes.",
)
@click.option(
    "--better",
    type=click.FloatRange(0.5, 1, max_open=True),
    help=f"AUC of the better challenger, where the champion's is {SAME.champion}. "
    "Default: it is better by as much as is planned for.",
)
@click.option(
    "--settled",
    type=click.FloatRange(0, min_open=True),
    default=selftests.SETTLED,
    show_default=True,
    help="Where outcomes come late: days until it is known that an outcome is 0. Those that are 1 are known "
    "within two thirds of that.",
)
@click.option("--seed", type=int, default=1, show_default=True)
@as_json
def selftest(
    *,
    config: Path | None,
    streams: int,
    outcomes: int | None,
    better: float | None,
    settled: float,
    seed: int,
    wants_json: bool,
) -> None:
    """Simulate the configured experiment, and say how often it would be judged wrongly.

    Clients, scores and outcomes are simulated; the sums, the trust checks, the guardrails and the decision
    are the real ones. A wrong decision at any look counts. Where both are of the same quality, at most
    alpha of the runs should ever name a winner. The better challenger is better by what one look at
    planned_outcomes would find with a power of 80 %.
    """
    try:
        document = load(config)
    except (ExperimentError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    who, declared = roles(document), rules(document)
    if not who.challengers:
        raise click.ClickException("there is no challenger")
    shares = document.shares
    share = shares[who.challengers[0]] / (shares[who.challengers[0]] + shares[who.champion])
    share = share if 0 < share < 1 else 0.5
    thresholds = {
        CHAMPION: document.decision.threshold(who.champion),
        CHALLENGER: document.decision.threshold(who.challengers[0]),
    }
    for line in _left_out(document):
        click.echo(line, err=True)
    declared = replace(
        declared,
        maturity=declared.maturity or 0.0,
        thresholds=thresholds,
        guardrails=tuple(each for each in declared.guardrails if not LATENCY.fullmatch(each.metric)),
        segments=(),
        sensitive=(),
    )
    experiment = Experiment(
        declared,
        who.design,
        share,
        outcomes or declared.n_star,
        steps=len(document.canary.steps) if document.mode == "canary" else 0,
        floor=document.bandit.floor,
        success=document.bandit.success,
        settled=settled,
    )
    challenger = experiment.planned() if better is None else experiment.better(better)
    results: list[Result] = []
    with Progress(console=console, transient=True, disable=wants_json) as progress:
        for scenario in experiment.scenarios(challenger.auc):
            task = progress.add_task(scenario.name, total=streams)
            lives = []
            for each in selftests.tried(experiment, scenario, streams, seed):
                lives.append(each)
                progress.advance(task)
            results.append(lives[-1])
    if wants_json:
        told = {selftests.BETTER: {"challenger": asdict(challenger)}}
        return say_json(
            [asdict(each) | {"interval": each.interval} | told.get(each.scenario, {}) for each in results]
        )
    say_table(
        ("scenario", "runs", "wrong decisions", "at most (95 %)", "right decisions"),
        [
            (
                *(each.scenario, str(each.streams), f"{each.wrong / each.streams:.1%}"),
                f"{each.interval[1]:.1%}",
                ", ".join(f"{count / each.streams:.1%} {name}" for name, count in _hoped(each).items()),
            )
            for each in results
        ],
    )
    click.echo(_told(challenger, experiment))
    [late] = [each for each in results if each.scenario == selftests.LATE]
    click.echo(_of_late(late, experiment))
    return None


def _left_out(document: Document) -> Iterator[str]:
    """What of a document is not simulated as it stands there."""
    who = roles(document)
    if document.maturity is None:
        yield "No maturity is declared, so no verdict would be trusted: simulated as 0d."
    first, *others = who.challengers
    if others:
        yield f"Only {first} is simulated beside {who.champion}, and not {', '.join(others)}."
    if document.mode == "shadow" and document.shadow.sample < 1:
        told = f"shadow.sample = {document.shadow.sample:g} is not simulated"
        yield f"{told}: all outcomes are of requests that both score."
    if document.mode == "bandit":
        yield "The shares of the bandit follow simulated outcomes, which are the same whoever answers."
    if document.mode == "canary":
        yield f"The canary is simulated at its first step, with a share of {document.canary.steps[0]:g}."
    if slow := [each.name for each in document.guardrails if LATENCY.fullmatch(each.metric)]:
        yield f"Latencies are not simulated, nor guardrails of them: {', '.join(slow)}."


def _hoped(result: Result) -> dict[str, int]:
    """How often what was hoped for was decided at last; what never was is left out, where anything was."""
    seen = {name: count for name, count in result.hoped.items() if count}
    return seen or dict([*result.hoped.items()][:1])


def _of_late(late: Result, experiment: Experiment) -> str:
    """By when outcomes come late, and whether the maturity is enough for that."""
    first, last, paid = (each * experiment.settled / selftests.DELAYS.paid for each in selftests.DELAYS)
    told = (
        f"Late outcomes: an outcome that is 1 is known {first:.3g} to {last:.3g} days after its request, one "
        f"that is 0 after {paid:.3g} (--settled); there are no guardrails. "
    )
    if (experiment.rules.maturity or 0.0) >= experiment.settled * DAY:
        return f"{told}The maturity waits for all of them."
    return (
        f"{told}The maturity is shorter: outcomes that came early named a winner where there is none in "
        f"{late.wrong} of {late.streams} runs. Declare one of {paid:.3g} days."
    )


def _told(better: Better, experiment: Experiment) -> str:
    """By how much the better challenger is better, whether it was planned for, and how often it is named."""
    rules = experiment.rules
    told = f"The better challenger (AUC {better.auc:.4g}, the champion's is {SAME.champion}) "
    if better.outcomes is None:
        return f"{told}is not better in {METRICS[rules.metric]}."
    told += (
        f"is better in {METRICS[rules.metric]} by {figure(better.difference)}: one look at "
        f"{better.outcomes:,} outcomes finds that with a power of {selftests.POWER:.0%}, "
        f"{rules.n_star:,} are planned."
    )
    if better.auc == selftests.BEST and better.outcomes > rules.n_star:
        told += " No simulated one is better by as much as these would find."
    if rules.max_gap is not None:
        return told
    return (
        f"{told} By theory {experiment.expected(better):.0%} of runs of {experiment.outcomes:,} outcomes "
        "name it, if no guardrail is in the way."
    )


if __name__ == "__main__":
    selftest(prog_name="runoff selftest")
