# SPDX-License-Identifier: Apache-2.0
"""Judges the evidence of a run. It knows the promises and the table, and no code of the product.

What a publisher does not know, because it was killed or its connection broke in the commit, the
table decides: with a row the task was published, and must have come to its end; without one it
was not, and must have had no effect.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tests.chaos.evidence import Evidence, Row, ServiceFacts

FINAL = ("COMPLETED", "FAILED", "CANCELLED")
#: Publishes that can never be committed, whatever happens to the publisher.
NEVER = ("rolled_back", "savepoint")
#: Publishes that write a note in the same transaction.
WITH_NOTE = ("atomic", "late")
FAILS = "tests.chaos.tasks.fail"
ON_PURPOSE = "on purpose: "
#: What a service may hold more in the end than at its start.
MORE_THREADS = 10
MORE_FILES = 20
MORE_MEMORY = 150 * 1024 * 1024
CONNECTIONS = 2
SHOWN = 20
#: Seconds by which two starts may be noted nearer to each other than they were counted.
ROUNDING = 0.05


@dataclass(frozen=True, kw_only=True)
class Violation:
    """A promise that was broken, and by what."""

    invariant: str
    text: str
    ids: tuple[str, ...] = ()

    def __str__(self) -> str:
        shown = ", ".join(self.ids[:SHOWN])
        more = f" and {len(self.ids) - SHOWN} more" if len(self.ids) > SHOWN else ""
        return f"{self.invariant}: {self.text}" + (f": {shown}{more}" if self.ids else "")


def judge(evidence: Evidence) -> list[Violation]:
    """Every promise that this run broke; none: it passed."""
    return [violation for invariant in INVARIANTS for violation in invariant(evidence)]


def outcomes(evidence: Evidence) -> dict[str, tuple[str, str]]:
    """Kind and last recorded outcome of each publish, by key."""
    result: dict[str, tuple[str, str]] = {}
    for one in evidence.publishes:
        result[one["key"]] = (one["kind"], one["outcome"])
    return result


def repeats(evidence: Evidence) -> dict[str, int]:
    """Effects beyond the first, by the row's id."""
    counts = Counter(one["uuid"] for one in evidence.effects)
    return {key: count - 1 for key, count in counts.items() if count > 1}


def unexplained(evidence: Evidence) -> list[str]:
    """Rows with more effects beyond the first than workers were lost under them."""
    crashes = {row.uuid: row.crashes for row in evidence.rows}
    return [key for key, count in repeats(evidence).items() if count > crashes.get(key, 0)]


def most_at_once(evidence: Evidence) -> dict[str, int]:
    """Of each limit's name, how many runs were under way at the same time at most.

    A run is under way from its begin to its effect, or until it was noted that nothing comes of it:
    whoever was killed or stood still for too long holds its slot until then, and no longer. One
    that has begun after that, or of which neither is known, counts for nothing.
    """
    slots = {row.uuid: row.slot for row in evidence.rows}
    ends = {(one["uuid"], one["attempt"]): one["time"] for one in evidence.effects}
    changes: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for one in evidence.begins:
        run = (one["uuid"], one["attempt"])
        known = [times[run] for times in (ends, evidence.lost) if run in times]
        slot = slots.get(one["uuid"])
        if slot is not None and known and min(known) > one["time"]:
            changes[slot] += [(one["time"], 1), (min(known), -1)]
    most = {}
    for slot, found in changes.items():
        # Who ends at the very moment at which another begins has ended before.
        most[slot] = max(accumulate(change for _, change in sorted(found)))
    return most


def most_in_a_period(evidence: Evidence) -> dict[str, int]:
    """Of each rate's name, how many starts were counted in one period at most."""
    times: dict[str, list[float]] = defaultdict(list)
    for _, rate, at in evidence.starts:
        if at is not None:
            times[rate].append(at)
    most = {}
    for rate, found in times.items():
        found.sort()
        period = evidence.rates[group_of(rate)].per - ROUNDING
        most[rate] = max(n + 1 - bisect_right(found, at - period) for n, at in enumerate(found))
    return most


def group_of(limit: str) -> str:
    """The second word of a limit's name."""
    return limit.split()[1]


def _found(invariant: str, text: str, ids: Iterable[str]) -> Iterator[Violation]:
    found = tuple(ids)
    if found:
        yield Violation(invariant=invariant, text=f"{len(found)} {text}", ids=found)


def published_means_kept(evidence: Evidence) -> Iterator[Violation]:
    """INV1: what was committed is there, once; what was rolled back, or never tried, is not."""
    rows: dict[str, list[Row]] = defaultdict(list)
    for row in evidence.rows:
        rows[row.key].append(row)
    known = outcomes(evidence)
    keys = known.items()
    yield from _found(
        "INV1",
        "committed publishes have no row",
        (key for key, (_, outcome) in keys if outcome == "committed" and key not in rows),
    )
    yield from _found(
        "INV1",
        "publishes that were rolled back have a row",
        (
            key
            for key, (kind, outcome) in keys
            if key in rows and (kind in NEVER or outcome == "rolled back")
        ),
    )
    yield from _found("INV1", "rows that nobody published", (k for k in rows if k not in known))
    yield from _found("INV1", "keys have two rows", (k for k, found in rows.items() if found[1:]))
    yield from _found(
        "INV1",
        "rows and their transactions' other writes are not together",
        (
            key
            for key, (kind, _) in keys
            if kind in WITH_NOTE and (key in rows) != (key in evidence.notes)
        ),
    )
    yield from _found(
        "INV1",
        "effects belong to no row",
        {one["uuid"] for one in evidence.effects} - {row.uuid for row in evidence.rows},
    )


def all_final(evidence: Evidence) -> Iterator[Violation]:
    """INV2: every row has come to its end, in time."""
    left = [f"{row.uuid} {row.status}" for row in evidence.rows if row.status not in FINAL]
    yield from _found("INV2", "rows are not final", left)
    if evidence.seconds_to_final is None and not left:
        yield Violation(invariant="INV2", text="the last row was final too late")


def only_deliberate_failures(evidence: Evidence) -> Iterator[Violation]:
    """INV3: FAILED is what failed on purpose, and nothing else."""
    yield from _found(
        "INV3",
        "rows FAILED that should not have",
        (
            f"{row.uuid} ({row.exception})"
            for row in evidence.rows
            if row.status == "FAILED"
            and not (row.task == FAILS and (row.exception or "").startswith(ON_PURPOSE))
        ),
    )
    yield from _found(
        "INV3",
        "rows did not FAIL that should have",
        (row.uuid for row in evidence.rows if row.task == FAILS and row.status == "COMPLETED"),
    )
    cancelled = (row.uuid for row in evidence.rows if row.status == "CANCELLED")
    yield from _found("INV3", "rows were CANCELLED by nobody", cancelled)


def at_least_once(evidence: Evidence) -> Iterator[Violation]:
    """INV4: what is COMPLETED, or FAILED on purpose, has had its effect."""
    done = {one["uuid"] for one in evidence.effects}
    yield from _found(
        "INV4",
        "rows are final and had no effect",
        (
            row.uuid
            for row in evidence.rows
            if row.uuid not in done and (row.status == "COMPLETED" or row.task == FAILS)
            if row.status in FINAL
        ),
    )


def repeats_are_explained(evidence: Evidence) -> Iterator[Violation]:
    """INV5: an effect beyond the first needs a lost attempt that the row tells of."""
    attempts = {row.uuid: row.attempts for row in evidence.rows}
    effects: dict[str, list[int]] = defaultdict(list)
    for one in evidence.effects:
        effects[one["uuid"]].append(one["attempt"])
    yield from _found(
        "INV5", "rows had effects that no lost worker explains", unexplained(evidence)
    )
    yield from _found(
        "INV5",
        "rows had more effects than attempts",
        (key for key, found in effects.items() if len(found) > attempts.get(key, len(found))),
    )
    yield from _found(
        "INV5",
        "rows had one attempt run twice",
        (key for key, found in effects.items() if len(found) != len(set(found))),
    )
    if not evidence.interrupting:
        lost = (row.uuid for row in evidence.rows if row.crashes)
        yield from _found("INV5", "rows tell of lost workers, and none was lost", lost)


def final_stays_final(evidence: Evidence) -> Iterator[Violation]:
    """INV6: no final row changes."""
    yield from _found("INV6", "changes of final rows", evidence.illegal)


def no_message_left(evidence: Evidence) -> Iterator[Violation]:
    """INV7: the broker holds nothing but the poisonous messages that were sent, put aside."""
    for name, (ready, unacked) in sorted(evidence.queues.items()):
        if unacked or (ready and not name.endswith(".dead")):
            text = f"queue {name} holds {ready} messages, {unacked} of them unacknowledged"
            yield Violation(invariant="INV7", text=text)
    dead, poison = set(evidence.dead), set(evidence.poison)
    yield from _found("INV7", "dead letters that are no poison", dead - poison)
    yield from _found("INV7", "poisonous messages were not put aside", poison - dead)


def processes_are_sound(evidence: Evidence) -> Iterator[Violation]:
    """INV8: nothing leaks, nothing ends by itself, no error that nobody foresaw."""
    yield from _found("INV8", "processes ended by themselves", evidence.unexpected_ends)
    yield from _found("INV8", "unexpected tracebacks", evidence.tracebacks)
    for service in evidence.services:
        for text in _leaks(service):
            yield Violation(invariant="INV8", text=f"service {service.name} {text}")


def _leaks(service: ServiceFacts) -> Iterator[str]:
    for what, now, start, more in (
        ("threads", service.threads, service.threads_at_start, MORE_THREADS),
        ("open files", service.files, service.files_at_start, MORE_FILES),
        ("bytes of memory", service.memory, service.memory_at_start, MORE_MEMORY),
    ):
        if now > start + more:
            yield f"has {now} {what}, after {start} at its start"
    if service.connections != CONNECTIONS:
        yield f"has {service.connections} connections to the broker, not {CONNECTIONS}"
    if service.exit_status:
        yield f"ended with status {service.exit_status} on SIGTERM"


def limits_hold(evidence: Evidence) -> Iterator[Violation]:
    """INV9: never more at once, and never more starts in a period, than a limit says."""
    yield from _found(
        "INV9",
        "limits had more runs at once than they let",
        (
            f"{slot} had {most} of {evidence.at_once[group_of(slot)]}"
            for slot, most in most_at_once(evidence).items()
            if most > evidence.at_once[group_of(slot)]
        ),
    )
    yield from _found(
        "INV9",
        "rates had more starts in a period than they let",
        (
            f"{rate} had {most} of {evidence.rates[group_of(rate)].limit}"
            for rate, most in most_in_a_period(evidence).items()
            if most > evidence.rates[group_of(rate)].limit
        ),
    )
    yield from _found(
        "INV9",
        "starts under a rate were not counted",
        (uuid for uuid, _, at in evidence.starts if at is None),
    )
    limited = {row.uuid for row in evidence.rows if row.slot or row.rate}
    yield from _found(
        "INV9",
        "runs under a limit that their rows do not know",
        {one["uuid"] for one in evidence.begins} - limited,
    )


def no_secrets(evidence: Evidence) -> Iterator[Violation]:
    """INV10: no log has a password."""
    yield from _found("INV10", "logs have a password", evidence.secrets)


INVARIANTS: tuple[Callable[[Evidence], Iterator[Violation]], ...] = (
    published_means_kept,
    all_final,
    only_deliberate_failures,
    at_least_once,
    repeats_are_explained,
    final_stays_final,
    no_message_left,
    processes_are_sound,
    limits_hold,
    no_secrets,
)
