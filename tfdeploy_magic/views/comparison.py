"""A comparison of several files of one model, and the search for one that fits: HTML and its plain-text twin."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from tfdeploy_magic.artifacts.comparison import Budget, Row, SweepPoint, Table
from tfdeploy_magic.artifacts.evidence import ABOUT_ANSWERS, Drop, Evidence, Finding, Latency
from tfdeploy_magic.artifacts.schemes import SCHEMES
from tfdeploy_magic.evaluate.metrics import samples_to_show
from tfdeploy_magic.views import html as pieces
from tfdeploy_magic.views import words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BEST, FRONT = "★", "◆"
"""The marks of the row to take and of those on the Pareto front, in tables and figures alike."""

WIDTH = 1080
"""CSS pixels of the card: nine columns need them."""

_MARK = {"ok": "✓", "not ok": "✗", "not measured": "–"}
_LONGEST = 60

MOSTLY = 0.9
"""A file of which less is quantized says so: a scheme's quantizer may not know all of the model's operators."""

SAME_SPEED = 0.05
"""Latencies closer than this are called the same, however quiet the run was: the next one may be less so."""


def mimebundle(table: Table) -> dict[str, str]:
    """Return the comparison as ``text/html`` and ``text/plain``."""
    return {"text/html": html(table), "text/plain": text(table)}


def unfinished(table: Table) -> dict[str, str]:
    """Return the files that are finished while others are being made; pictures wait for the end."""
    if not table.rows and not table.failures:
        return {"text/html": "", "text/plain": ""}
    head, *rows = _rows(table)
    body = (pieces.heading(_counted(table), pieces.escape(table.source)), pieces.table(head, *rows))
    return {
        "text/html": pieces.card(pieces.NEUTRAL, f"comparison so far: {_counted(table)}", body, width=WIDTH),
        "text/plain": pieces.plain_text([_counted(table), *pieces.plain_table([head, *rows])]),
    }


def text(table: Table) -> str:
    """Return the comparison as plain text."""
    lines = [f"{_counted(table)}: {table.source}", *(f"  {said}" for said in _sentences(table))]
    if table.rows or table.failures:
        lines += ["", *pieces.plain_table(_rows(table)), *(f"  {said}" for said in _legend(table))]
    lines += pieces.plain_findings(_noticed(table))
    for title, rows in _sections(table):
        lines += pieces.plain_section(title, pieces.plain_table(rows))
    lines += ["", *pieces.plain_facts(_facts(table))] if table.rows else []
    lines += pieces.plain_section("seconds", pieces.plain_facts(_times(table)))
    if (following := next_line(table)) is not None:
        lines += ["", f"  next: {following}"]
    return pieces.plain_text(lines)


def html(table: Table) -> str:
    """Return the comparison as HTML; every name that came from a model or a person is escaped."""
    aside = _asides(table)
    times = "".join((pieces.facts(_times(table)), *map(pieces.finding, aside)))
    title = "times and what was noticed on single files" if aside else "times"
    head, *rows = _rows(table)
    return pieces.card(
        _edge(table),
        f"comparison: {_counted(table)}",
        (
            pieces.heading(_counted(table), pieces.escape(table.source)),
            *map(pieces.sentence, _sentences(table)),
            pieces.table(head, *rows) if rows else "",
            *map(pieces.sentence, _legend(table)),
            _pictures(table),
            *(pieces.finding(each) for each in _noticed(table) if each not in aside),
            *(pieces.section(title, pieces.table(*rows)) for title, rows in _sections(table)),
            pieces.facts(_facts(table)) if table.rows else "",
            pieces.following(next_line(table)),
            pieces.folded(title, times) if table.seconds or aside else "",
        ),
        width=WIDTH,
    )


def figure(table: Table) -> Figure:
    """Draw size, metric, SNR and latency of every row, and size against SNR with the Pareto front."""
    from tfdeploy_magic.views import comparison_figures

    return comparison_figures.overview(table)


def sweep_figure(table: Table) -> Figure:
    """Draw the latency of one sample over the batch size, a panel for each number of threads."""
    from tfdeploy_magic.views import comparison_figures

    return comparison_figures.sweep(table)


def next_line(table: Table) -> str | None:
    """Return the line that keeps the best file; None when there is none worth keeping."""
    row = best_row(table)
    plain = next((each for each in table.rows if each.label == "int8"), None)
    if (
        plain is not None
        and not table.budget
        and _lost_accuracy_only(plain)
        and (row is None or row.file.size > plain.file.size)
    ):
        search = "--max-drop 2%" if plain.evidence.n >= samples_to_show(0.02) else "--explain"
        return f"%quantize {_name_and_flags(plain)} --int8 {search}"
    if row is None or row.evidence.verdict == "not ok" or row.file.foreign_operators:
        return None
    scheme = SCHEMES.get(row.label)
    if scheme is None:
        return 'RESULT.best.save("model.tflite")'
    io = row.provenance.options.get("io")
    asked = f" --io {io}" if row.label == "int8" and io != "int8" else ""
    return f"%tflite_convert {_name_and_flags(row)} {scheme.flag}{asked} -o model.tflite"


def _name_and_flags(row: Row) -> str:
    name = row.provenance.source.partition(": ")[0]
    return f"{shlex.quote(name)}{row.provenance.options.get('kept_flags', '')}"


def best_row(table: Table) -> Row | None:
    """Return the row to take; None when there is none."""
    return next((row for row in table.rows if row.label == table.best), None)


def float_row(table: Table) -> Row | None:
    """Return the float32 row, which the others are set against; None when it was not asked for."""
    return next((row for row in table.rows if row.file.scheme == "float32"), None)


def metric_of(table: Table) -> str | None:
    """Return the task metric's name; None when no row has one."""
    return next((row.evidence.metric for row in table.rows if row.evidence.metric and row.evidence.score), None)


def marks_of(label: str, table: Table) -> tuple[str, ...]:
    """Return what is special about a row, "★ best" and "◆ Pareto front"; one row has nothing to be set against."""
    if len(table.rows) < 2:
        return ()
    front = label in table.pareto
    return (*((f"{BEST} best",) if label == table.best else ()), *((f"{FRONT} Pareto front",) if front else ()))


def _counted(table: Table) -> str:
    count = len(table.rows)
    return ("1 file" if count == 1 else f"{count} files side by side") + (" (stopped)" if table.stopped else "")


def _edge(table: Table) -> str:
    if any(each.level == "error" for each in table.findings) or (table.rows and not any(map(_good, table.rows))):
        return pieces.BAD
    return pieces.GOOD if table.best is not None else pieces.DOUBTFUL if table.budget else pieces.NEUTRAL


def _good(row: Row) -> bool:
    return row.evidence.verdict != "not ok"


def _sentences(table: Table) -> Iterator[str]:
    if table.budget:
        yield f"Asked for: {asked(table)}."
        yield _found(table) if table.rows else "Nothing is measured yet."
    elif (best := best_row(table)) is not None:
        yield f"{best.label}: {standing(best)}{_ranked(best, table)}."
    elif table.rows and all(row.evidence.verdict == "not ok" for row in table.rows):
        yield "None of them is ok." if len(table.rows) > 1 else "It is not ok."
    if table.stopped:
        yield "Stopped before its end: what is shown was measured, the rest was not."


def asked(table: Table) -> str:
    """Return the budget in words."""
    budget, metric = table.budget, metric_of(table)
    asked = []
    if budget.max_drop is not None:
        of = f"worse in {metric}" if metric else "of the samples with another top class"
        asked.append(f"at most {100 * budget.max_drop:.3g}{_unit(metric)} {of}")
    if budget.max_size is not None:
        asked.append(f"at most {words.size(budget.max_size)}")
    if budget.max_latency is not None:
        asked.append(f"at most {words.milliseconds(budget.max_latency)} for one sample")
    return ", ".join(asked)


def _unit(metric: str | None) -> str:
    return " points" if metric and "accuracy" in metric else "%"


def _found(table: Table) -> str:
    best = best_row(table)
    if best is not None and not table.budget.excess(best):
        return f"{best.label} meets it: {standing(best)}{_ranked(best, table)}."
    return f"None of them meets it. Nearest: {nearest(table)}."


def nearest(table: Table) -> str:
    """Say which row misses the budget by least, and by how much; there is at least one row."""
    row = table.nearest
    assert row is not None
    missed = table.budget.excess(row)
    how = _missed(missed, metric_of(table)) if missed else "it is not ok"
    return f"{row.label}, {standing(row)}: {how}"


def _ranked(best: Row, table: Table) -> str:
    """Return how the row to take compares in size with those it was chosen from; nothing where it was not for that."""
    among = [row for row in table.rows if not table.budget.excess(row) and _good(row)]
    does = "do" if table.budget else "are ok"
    if not table.budget and not _warned_of(best):
        among, does = [row for row in among if not _warned_of(row)], "nothing warns of"
    if len(among) < 2:
        return ", the only one that does" if table.budget else ""
    smallest = min(row.file.size for row in among) == best.file.size
    return f", the smallest of {len(among)} that {does}" if smallest else f", one of {len(among)} that {does}"


def _warned_of(row: Row) -> bool:
    return any(finding.code in ABOUT_ANSWERS for finding in row.evidence.findings)


def _missed(missed: Mapping[str, float], metric: str | None) -> str:
    parts = []
    for limit, by in missed.items():
        if by == float("inf"):
            parts.append(f"its {limit} was not measured")
        elif limit == "drop":
            parts.append(f"{100 * by:.1f}{_unit(metric)} more drop than asked")
        else:
            parts.append(f"×{by:.3g} the {limit} asked")
    return ", ".join(parts)


def standing(row: Row) -> str:
    """Return where a row stands against its source: "72.1 kB, 1.0 points below the source model (…)"."""
    evidence = row.evidence
    size = words.size(row.file.size)
    if evidence.drop is not None and evidence.metric is not None:
        return f"{size}, {_below(evidence.drop, evidence.metric)}"
    if evidence.agreement is not None:
        return f"{size}, {words.share(1 - evidence.agreement)} of the samples got another top class"
    if evidence.snr_db is not None:
        return f"{size}, SNR {words.decibels(evidence.snr_db)}"
    return f"{size}, answers not compared"


def _below(drop: Drop, metric: str) -> str:
    """Return "1.0 points below the source model (95% interval −0.4 to 2.5, no difference shown)"."""
    side = {way: f"{way} than the source model" for way in ("worse", "better")}
    if "accuracy" in metric:
        side = {"worse": "below the source model", "better": "above the source model"}
    amount, _, way = words.drop(drop, metric).rpartition(" ")
    said = f"{amount} {side[way]}" if way in side else "on a par with the source model"
    if drop.low is None or drop.high is None:
        return f"{said} (no interval)"
    low, high = (drop.low, drop.high) if drop.value >= 0 else (-drop.high, -drop.low)
    doubt = "" if words.drop_is_shown(drop) else ", no difference shown"
    return f"{said} (95% interval {words.tenths(low)} to {words.tenths(high)}{doubt})"


def _rows(table: Table) -> list[tuple[pieces.Cell, ...]]:
    """Return the table below the titles of its columns; columns in which nobody has anything are left out."""
    reference, metric = float_row(table), metric_of(table)
    against = "float32" if reference else table.rows[0].provenance.source_form if table.rows else "source"
    head: list[pieces.Cell] = [
        *("file", f"size, against {against}", metric or "metric", f"drop of {metric}", "SNR", "same top class"),
        *("latency p50 / p95", "verdict"),
    ]
    body = [_cells(row, table) for row in table.rows]
    body += [_failed(failure.label, len(head)) for failure in table.failures]
    useless = set[int]()
    if metric is None:
        useless |= {2, 3}
    if all(row.evidence.agreement is None for row in table.rows):
        useless.add(5)
    if all(row.evidence.latency is None for row in table.rows):
        useless.add(6)
    kept = [column for column in range(len(head)) if column not in useless]
    return [tuple(row[column] for column in kept) for row in (head, *body)]


def _failed(label: str, columns: int) -> list[pieces.Cell]:
    return [_short(label), *["–"] * (columns - 2), ("✗ failed", "see below")]


def _cells(row: Row, table: Table) -> list[pieces.Cell]:
    evidence = row.evidence
    agreement = "not measured" if evidence.agreement is None else words.share(evidence.agreement)
    snr = "not measured" if evidence.snr_db is None else words.decibels(evidence.snr_db)
    marks = " · ".join(marks_of(row.label, table))
    return [
        (_short(row.label), marks) if marks else _short(row.label),
        _size(row, table),
        _score(evidence),
        _drop(evidence),
        snr,
        agreement,
        _latency(row, table),
        _verdict(row, table.budget),
    ]


def _size(row: Row, table: Table) -> pieces.Cell:
    reference = float_row(table)
    if row is reference:
        return words.size(row.file.size)
    before = reference.file.size if reference else row.provenance.source_size
    saved = f"{words.signed(100 * (row.file.size / before - 1), 1)}%"
    held = row.file.quantized_share
    if held is not None and held < MOSTLY:
        saved += f", only {100 * held:.0f}% quantized"
    return words.size(row.file.size), saved


def _score(evidence: Evidence) -> pieces.Cell:
    if evidence.score is None or evidence.metric is None:
        return "not measured"
    value, _, interval = words.score(evidence.score, evidence.metric).partition(" ")
    return (value, interval.strip("()")) if interval else value


def _drop(evidence: Evidence) -> pieces.Cell:
    if evidence.drop is None or evidence.metric is None:
        return "not measured"
    said = words.drop(evidence.drop, evidence.metric) if words.drop_is_shown(evidence.drop) else "no difference shown"
    return said, words.drop_in_numbers(evidence.drop, evidence.metric)


def _latency(row: Row, table: Table) -> pieces.Cell:
    latency = row.evidence.latency
    if latency is None:
        return "not measured"
    return words.latency(latency), speed(row, table)


def speed(row: Row, table: Table) -> str:
    """Return how fast a row is against float32, "same" within the noise of the timing; empty when nobody knows."""
    reference = float_row(table)
    before = reference.evidence.latency if reference else None
    after = row.evidence.latency
    if before is None or after is None or row is reference:
        return ""
    ratio = max(before.p50, after.p50) / min(before.p50, after.p50)
    return "same as float32" if ratio - 1 <= max(table.noise or 0.0, SAME_SPEED) else words.speed_up(before, after)


def _faster(row: Row, table: Table) -> bool:
    return speed(row, table).endswith("faster")


def _lost_accuracy_only(row: Row) -> bool:
    """Whether a file is not ok for its answers alone; what else is wrong has its own cure."""
    wrong = {finding.code for finding in row.evidence.findings if finding.level == "error"}
    return bool(wrong) and wrong <= ABOUT_ANSWERS


def _verdict(row: Row, budget: Budget) -> pieces.Cell:
    said = f"{_MARK[row.evidence.verdict]} {row.evidence.verdict}"
    if not budget:
        return said
    missed = budget.excess(row)
    return said, f"misses {', '.join(missed)}" if missed else "within the limits"


def _legend(table: Table) -> Iterator[str]:
    marked = {mark for row in table.rows for mark in marks_of(row.label, table)}
    meaning = {
        f"{BEST} best": "the file to take",
        f"{FRONT} Pareto front": "no other file is both smaller and closer to the source (SNR)",
    }
    if said := "; ".join(f"{mark}: {why}" for mark, why in meaning.items() if mark in marked):
        yield f"{said}."


def _noticed(table: Table) -> tuple[Finding, ...]:
    """Return what was noticed: on the comparison, what failed, and on the files, equal findings once."""
    failed = (
        Finding("error", "failed", f"{_short(each.label)} failed: {each.reason.rstrip('.')}", each.cure)
        for each in table.failures
    )
    found: dict[Finding, list[str]] = {}
    for row in table.rows:
        for each in row.evidence.findings:
            if each.code not in ABOUT_ANSWERS:  # the table says those, row by row
                found.setdefault(each, []).append(_short(row.label))
    on_files = [replace(each, message=f"{_listed(labels)}: {each.message}") for each, labels in found.items()]
    ranked = sorted((each for each in on_files), key=lambda each: list(pieces.EDGE).index(each.level))
    return (*table.findings, *failed, *ranked)


def _asides(table: Table) -> tuple[Finding, ...]:
    """Return the findings on single files that can wait: a card of twelve files would hide under them."""
    return tuple(each for each in _noticed(table) if each.level == "note" and each not in table.findings)


def _listed(labels: list[str]) -> str:
    return ", ".join(labels[:4]) + (f" and {len(labels) - 4} more" if len(labels) > 4 else "")


def _sections(table: Table) -> Iterator[tuple[str, list[tuple[pieces.Cell, ...]]]]:
    if table.trials:
        yield "the search, step by step", _search(table)
    if table.contrasts:
        yield "where the two engines differ", _contrasts(table)
    if table.sweep:
        yield "latency of one sample", _sweep(table)
    if slow := [(_short(row.label), "; ".join(row.slow)) for row in table.rows if row.slow and not _faster(row, table)]:
        yield "why a file may be slower than float32", [("file", "why"), *slow]


def _search(table: Table) -> list[tuple[pieces.Cell, ...]]:
    steps = [
        (
            f"{number}  {_short(trial.label)}",
            trial.why,
            f"{'✓' if trial.met else '✗'} {trial.outcome}",
            words.seconds(trial.seconds),
        )
        for number, trial in enumerate(table.trials, 1)
    ]
    return [("tried", "because", "outcome", "took"), *steps]


def _contrasts(table: Table) -> list[tuple[pieces.Cell, ...]]:
    rows: list[tuple[pieces.Cell, ...]] = [
        (("TensorFlow's", "litert-quantizer's"), "answers differ", "ranges differ", "why")
    ]
    for each in table.contrasts:
        answers = words.decibels(each.snr_db)
        classes = "" if each.agreement is None else f"same top class {words.share(each.agreement)}"
        ranges = "no ranges" if each.ranges is None else f"{each.ranges[0]} of {each.ranges[1]} tensors"
        rows.append(((_short(each.first), _short(each.second)), (answers, classes), ranges, each.why))
    return rows


def _sweep(table: Table) -> list[tuple[pieces.Cell, ...]]:
    ways = list(dict.fromkeys((point.threads, point.batch) for point in table.sweep))
    measured = {(point.label, point.threads, point.batch): point for point in table.sweep}
    rows: list[tuple[pieces.Cell, ...]] = [("file", *((words.threads(of), f"batch {batch}") for of, batch in ways))]
    for label in dict.fromkeys(point.label for point in table.sweep):
        points = (measured.get((label, *way)) for way in ways)
        rows.append((_short(label), *(_one_sample(point) for point in points)))
    return rows


def _one_sample(point: SweepPoint | None) -> str:
    if point is None:
        return "…"
    return "cannot run so" if point.latency is None else words.milliseconds(point.latency.p50 / point.batch)


def _facts(table: Table) -> list[tuple[str, str]]:
    facts = []
    if tested := next((row.provenance.test for row in table.rows if row.provenance.test), None):
        facts.append(("tested", f"on {tested}"))
    facts += _calibration(table)
    if timed := next((row.evidence.latency for row in table.rows if row.evidence.latency), None):
        facts += [("timed", _timed(timed)), ("noise", _noise(table.noise))]
    return facts


def _calibration(table: Table) -> Iterator[tuple[str, str]]:
    """Yield what calibrated the first file that needed it: all of one comparison share the samples."""
    made = next((row.provenance for row in table.rows if row.provenance.calibration), None)
    if made is None:
        return
    yield "calibrated", f"on {made.calibration}"
    parts = (
        f"{name.replace('_', ' ')} {_digest_or(value)}" for name, value in made.manifest.items() if value is not None
    )
    if said := ", ".join(parts):
        yield "its data", said


def _digest_or(value: object) -> str:
    text = str(value)
    is_digest = len(text) == 64 and not set(text) - set("0123456789abcdef")
    return f"{text[:12]}…" if is_digest else _short(text)


def _timed(latency: Latency) -> str:
    samples = "one sample" if latency.batch == 1 else f"{latency.batch} samples"
    return f"{samples} at a time, {words.threads(latency.threads)}"


def _noise(noise: float | None) -> str:
    if noise is None:
        return "each file was timed once, so how large a difference has to be to mean something is not known"
    apart = f"{100 * noise:.0f}%" if noise >= 0.005 else "less than 1%"
    floor = "smaller differences mean nothing"
    if noise < SAME_SPEED:
        floor = f"in another run they may differ by more, so less than {100 * SAME_SPEED:.0f}% is called the same"
    return f"medians of one and the same file differed by {apart}: {floor}"


def _times(table: Table) -> list[tuple[str, str]]:
    return [(stage, words.seconds(seconds)) for stage, seconds in table.seconds.items()]


def _pictures(table: Table) -> str:
    if not table.rows:
        return ""
    parts = [pieces.picture(figure(table), _alternative(table), WIDTH - 40)]
    if table.sweep:
        said = "latency of one sample over batch size; the numbers are in the table below"
        parts.append(pieces.picture(sweep_figure(table), said, WIDTH - 40))
    return "".join(parts)


def _alternative(table: Table) -> str:
    said = []
    for row in table.rows:
        evidence = row.evidence
        parts = [words.size(row.file.size)]
        if evidence.metric and evidence.score:
            parts.append(f"{evidence.metric} {words.score(evidence.score, evidence.metric)}")
        if evidence.snr_db is not None:
            parts.append(f"SNR {words.decibels(evidence.snr_db)}")
        if evidence.latency is not None:
            parts.append(f"median {words.milliseconds(evidence.latency.p50)}")
        said.append(f"{_short(row.label)}: {', '.join((*parts, *marks_of(row.label, table)))}")
    return "; ".join(said)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
