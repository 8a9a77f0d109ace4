"""What ``%tune`` shows: whether settings gain anything on the defaults, what was tried, and what to serve with."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tfdeploy_magic.artifacts.evidence import Finding
from tfdeploy_magic.serving.load import GROWTH, Load
from tfdeploy_magic.serving.tuning import Duel, Ratio, Settings, Trial, Tuning
from tfdeploy_magic.views import html as pieces
from tfdeploy_magic.views import words
from tfdeploy_magic.views.load import CLIENTS_ARE_THE_LIMIT
from tfdeploy_magic.views.load_figures import ENOUGH, answered, rate, some
from tfdeploy_magic.views.tuning_figures import CALLED, CHOSEN, STANDARD, figure

MOST_ROWS = 7
"""Trials that the table shows; the others are one click away."""


@dataclass(frozen=True)
class Shown:
    """What a card is made of.

    Args:
        name: What the model is called.
        url: Its REST address.
        tuning: What was tried.
        path: The batching parameters file; None where none was worth writing.
        text: What is in it.
        flags: What ``%serve --flags`` takes for the chosen settings; empty where they are the defaults.
        model: What the model is called in the kernel.
        sent: What was sent, "x_test, 1 row a request".
        seconds: How long all of it took.
        findings: What was noticed before anything was measured.
    """

    name: str
    url: str
    tuning: Tuning
    path: Path | None
    text: str
    flags: str
    model: str
    sent: str
    seconds: float
    findings: tuple[Finding, ...] = ()


def mimebundle(shown: Shown) -> dict[str, str]:
    """Return what tuning found as ``text/html`` and ``text/plain``."""
    return {"text/html": _html(shown), "text/plain": _text(shown)}


def _html(shown: Shown) -> str:
    said = _headline(shown.tuning)
    head, *rows = _rows(shown.tuning, _worth_seeing(shown.tuning))
    _, *all_rows = _rows(shown.tuning, shown.tuning.trials)
    left_out = len(all_rows) > len(rows)
    return pieces.card(
        _edge(shown.tuning),
        f"tuning of {shown.name}: {said}",
        (
            pieces.heading(said, f"{pieces.escape(shown.name)} <strong>{pieces.escape(shown.url)}</strong>"),
            *map(pieces.sentence, _sentences(shown.tuning)),
            pieces.table(head, *rows),
            pieces.picture(figure(shown.tuning), _alternative(shown.tuning)),
            *map(pieces.finding, _findings(shown)),
            pieces.section(*_written(shown)) if shown.text else "",
            pieces.facts(_facts(shown)),
            "".join(map(pieces.following, _next(shown))),
            pieces.folded(f"all {some(len(all_rows), 'trial')}", pieces.table(head, *all_rows)) if left_out else "",
        ),
    )


def _text(shown: Shown) -> str:
    lines = [f"{_headline(shown.tuning)}: {shown.name} {shown.url}"]
    lines += [f"  {said}" for said in _sentences(shown.tuning)]
    lines += ["", *pieces.plain_table(_rows(shown.tuning, shown.tuning.trials))]
    lines += pieces.plain_findings(_findings(shown))
    if shown.text:
        lines += pieces.plain_section(words.path(shown.path or Path()), shown.text.splitlines())
    lines += ["", *pieces.plain_facts(_facts(shown))]
    following = list(_next(shown))
    lines += ["", *(f"  next: {line}" for line in following)] if following else []
    return pieces.plain_text(lines)


def _written(shown: Shown) -> tuple[str, str]:
    return words.path(shown.path or Path()), pieces.preformatted(shown.text)


# What came of it


def _headline(tuning: Tuning) -> str:
    duel, target = tuning.duel, words.milliseconds(tuning.target_ms)
    if tuning.gain == "throughput" and duel is not None:
        return f"✓ tuned settings give {_times(duel.throughput)} the throughput"
    if tuning.gain == "target":
        return f"✓ tuned settings keep p99 within {target}, the defaults do not"
    if tuning.gain == "p99" and duel is not None:
        return f"✗ nothing kept p99 within {target}; tuned settings come nearest, with {_times(duel.p99)} the p99"
    if tuning.meets:
        return "– nothing was gained: keep the defaults"
    return f"✗ nothing kept p99 within {target}, and nothing was gained on the defaults"


def _edge(tuning: Tuning) -> str:
    if not tuning.meets:
        return pieces.DOUBTFUL
    return pieces.NEUTRAL if tuning.gain == "nothing" else pieces.GOOD


def _times(ratio: Ratio | None) -> str:
    """Return "1.31× (1.25–1.42)"."""
    return f"{ratio.median:.2f}× ({ratio.low:.2f}–{ratio.high:.2f})" if ratio is not None else "no known part of"


def _sentences(tuning: Tuning) -> Iterator[str]:
    duel = tuning.duel
    if duel is None:
        others = len(tuning.trials) - 1
        found = f"None of {others} other settings did better than the defaults when tried."
        yield found if others else "Nothing but the defaults was tried."
        return
    yield (
        f"{some(len(duel.tuned), 'round')} of {tuning.best.settings} against the defaults, both up at once and asked "
        f"in turn: {_times(duel.throughput)} the throughput, {_times(duel.p99)} the p99 "
        "(median, and range of the rounds)."
    )
    if tuning.gain == "nothing":
        yield _why_nothing(tuning, duel)


def _why_nothing(tuning: Tuning, duel: Duel) -> str:
    throughput = duel.throughput
    failed = sum(load.failed for load in duel.tuned)
    if failed:
        return f"They did best when tried, but in the duel {some(failed, 'request')} failed with them."
    if tuning.meets and throughput is not None and throughput.low > 1:
        within = _median_p99(duel.tuned) <= tuning.target_ms
        if within:
            return f"That is less than the {100 * (GROWTH - 1):.0f}% that other settings are worth."
        return f"With them p99 was {words.milliseconds(_median_p99(duel.tuned))}, over the target."
    return "They did best when tried, but not in every round of the duel."


def _median_p99(loads: tuple[Load, ...]) -> float:
    known = sorted(load.p99_ms for load in loads if load.p99_ms is not None)
    return known[len(known) // 2] if known else float("inf")


# What was tried


def _worth_seeing(tuning: Tuning) -> tuple[Trial, ...]:
    """Return the defaults, the best, and those that come nearest to it, in the order in which they were tried."""
    ranked = sorted(
        tuning.trials,
        key=lambda trial: (
            trial is not tuning.defaults,
            trial is not tuning.best,
            not trial.meets(tuning.target_ms),
            -trial.load.throughput if trial.meets(tuning.target_ms) and trial.load else trial.p99_ms,
        ),
    )
    kept = ranked[:MOST_ROWS]
    return tuple(trial for trial in tuning.trials if trial in kept)


def _rows(tuning: Tuning, trials: tuple[Trial, ...]) -> list[tuple[pieces.Cell, ...]]:
    head = ("trial", "batch size", "timeout", "batch threads", "intra / inter-op", "answers/s", "p50", "p99", "target")
    return [head, *(_row(tuning, trial) for trial in trials)]


def _row(tuning: Tuning, trial: Trial) -> tuple[pieces.Cell, ...]:
    name: pieces.Cell = str(tuning.trials.index(trial) + 1)
    if trial is tuning.defaults:
        name = f"{STANDARD} defaults"
    elif trial is tuning.best:
        name = f"{CHOSEN} {CALLED[tuning.gain == 'nothing']}"
    load = trial.load
    if load is None:
        return ((str(name), trial.problem), *_settings(trial.settings), "–", "–", "–", "✗ not started")
    kept = "✓ within" if trial.meets(tuning.target_ms) else "✗ over"
    if load.failed:
        kept = f"✗ {load.failed:,} failed"
    elif not answered(load):
        kept = "✗ no answer"
    latencies = (_latency(value) for value in (load.p50_ms, load.p99_ms))
    return name, *_settings(trial.settings), rate(load.throughput), *latencies, kept


def _settings(settings: Settings) -> Iterator[str]:
    """Yield what the settings are, a dash for what is left to the server."""
    if settings.max_batch_size is None:
        yield from ("–", "–", "–")
    else:
        yield str(settings.max_batch_size)
        micros = settings.batch_timeout_micros
        yield words.milliseconds(micros / 1000) if micros else "0"
        yield str(settings.num_batch_threads)
    yield f"{settings.intra_op_parallelism or '–'} / {settings.inter_op_parallelism or '–'}"


def _latency(value: float | None) -> str:
    return "–" if value is None else words.milliseconds(value)


def _findings(shown: Shown) -> Iterator[Finding]:
    tuning = shown.tuning
    yield from shown.findings
    chosen = tuning.chosen.settings
    if chosen.max_batch_size is not None:
        yield Finding(
            "note",
            "largest-request",
            f"a request of more than {some(chosen.max_batch_size, 'row')} will be refused, as TensorFlow Serving does",
            "Send more rows in several requests, or tune with the --rows that you send.",
        )
    runs = [*(trial.load for trial in tuning.trials if trial.load is not None)]
    runs += [*tuning.duel.defaults, *tuning.duel.tuned] if tuning.duel is not None else []
    busiest = max((load.generator for load in runs), default=0.0)
    if busiest > CLIENTS_ARE_THE_LIMIT:
        yield Finding(
            "warning",
            "clients-limit",
            f"the clients used {100 * busiest:.0f}% of one core: they, and not the server, may be what limited it",
            "Settings may differ by more than was seen: send more --rows in each request.",
        )
    fewest = min((answered(load) for load in runs), default=0)
    if 0 < fewest < ENOUGH[99]:
        yield Finding(
            "note",
            "few-answers",
            f"the shortest run had {some(fewest, 'answer')}: too few for a p99, so the longest stand for it",
            "More --seconds give longer runs.",
        )


def _facts(shown: Shown) -> Iterator[tuple[str, str]]:
    tuning = shown.tuning
    run = next((trial.load for trial in tuning.trials if trial.load is not None), None)
    yield "target", f"p99 within {words.milliseconds(tuning.target_ms)}"
    if run is not None:
        over = "gRPC" if run.over == "grpc" else "REST"
        yield "asked", f"{shown.sent}, over {over}, by {some(run.clients, 'client')} that wait for their answers"
        yield "each trial", f"{words.seconds(run.seconds)} on a server of its own, beside the one that serves"
    yield "took", f"{words.seconds(shown.seconds)}, {some(len(tuning.trials), 'trial')}"


def _next(shown: Shown) -> Iterator[str]:
    tuning = shown.tuning
    if shown.flags:
        named = f" --name {shlex.quote(shown.name)}" if shown.model != shown.name else ""
        yield f"%serve --stop {shlex.quote(shown.name)}"
        yield f"%serve {shown.model}{named} --flags {shlex.quote(shown.flags)}"
    elif not tuning.meets:
        data = shown.sent.rpartition(", ")[0]
        named = f" {data}" if data != "data" and re.fullmatch(r"[\w.]+(\[[\d:, -]+\])?", data) else ""
        yield f"%loadtest {shlex.quote(shown.url)}{named}"


def _alternative(tuning: Tuning) -> str:
    parts = [
        f"{trial.settings} {rate(trial.load.throughput)} answers/s, p99 {_latency(trial.load.p99_ms)}"
        for trial in _worth_seeing(tuning)
        if trial.load is not None
    ]
    if (duel := tuning.duel) is not None:
        parts.append(f"in the duel {_times(duel.throughput)} the throughput, {_times(duel.p99)} the p99")
    return "; ".join(parts)
