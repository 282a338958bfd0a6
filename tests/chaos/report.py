# SPDX-License-Identifier: Apache-2.0
"""What a run came to: a table for people, a JSON file for programs."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import Counter
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from tests.chaos import oracle
from tests.chaos.schedule import KINDS, MEANING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.chaos.evidence import Evidence
    from tests.chaos.injector import Done
    from tests.chaos.oracle import Violation
    from tests.chaos.schedule import Plan


#: Seconds before and after a fault in which tasks count as published meanwhile.
AROUND = 1.0


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything about one run."""

    plan: Plan
    faults: Sequence[Done]
    evidence: Evidence
    violations: Sequence[Violation]
    seconds: float
    """Of the whole run, servers' start included."""
    sabotage: str

    def numbers(self) -> dict[str, Any]:
        """What is counted, by name."""
        evidence = self.evidence
        states = Counter(row.status for row in evidence.rows)
        outcomes = Counter(outcome for _, outcome in oracle.outcomes(evidence).values())
        repeats = oracle.repeats(evidence)
        final = evidence.seconds_to_final
        waits = sorted(row.seconds for row in evidence.rows) or [0.0]
        return {
            "publishes committed": outcomes["committed"],
            "publishes rolled back": outcomes["rolled back"],
            "publishes with unknown outcome": outcomes["attempted"] + outcomes["unknown"],
            "rows": len(evidence.rows),
            "COMPLETED": states["COMPLETED"],
            "FAILED on purpose": states["FAILED"],
            "not final": states["PUBLISHED"] + states["IN_PROGRESS"],
            "effects": len(evidence.effects),
            "repeated effects": sum(repeats.values()),
            "repeats that no lost attempt explains": len(oracle.unexplained(evidence)),
            "attempts beyond the first": sum(max(0, row.attempts - 1) for row in evidence.rows),
            "lost attempts (crashes)": sum(row.crashes for row in evidence.rows),
            "most lost attempts of one row": max((row.crashes for row in evidence.rows), default=0),
            **self._limits(),
            "changes of final rows": len(evidence.illegal),
            "messages left": sum(
                ready + unacked
                for name, (ready, unacked) in evidence.queues.items()
                if not name.endswith(".dead")
            ),
            "poisonous messages sent": len(evidence.poison),
            "dead letters": len(evidence.dead),
            "seconds from publishing to the end, half of the tasks": _tenths(
                waits[len(waits) // 2]
            ),
            "seconds from publishing to the end, 99 of 100": _tenths(waits[len(waits) * 99 // 100]),
            "seconds from publishing to the end, the slowest": _tenths(waits[-1]),
            "seconds from the last fault until all was final": None
            if final is None
            else _tenths(final),
            "seconds": _tenths(self.seconds),
        }

    def _limits(self) -> dict[str, int]:
        """What came of the tasks under limits."""
        evidence = self.evidence
        limited = [row for row in evidence.rows if row.slot or row.rate]
        found = {
            "tasks under limits": len(limited),
            "tasks under limits that are not final": sum(
                row.status not in oracle.FINAL for row in limited
            ),
        }
        at_once = oracle.most_at_once(evidence)
        for group, limit in evidence.at_once.items():
            most = max(
                (n for name, n in at_once.items() if oracle.group_of(name) == group), default=0
            )
            found[f"most at once of one {group}, of {limit} allowed"] = most
        starts = oracle.most_in_a_period(evidence)
        for group, rate in evidence.rates.items():
            most = max(
                (n for name, n in starts.items() if oracle.group_of(name) == group), default=0
            )
            found[f"most starts in {rate.per:g} s of {group}, of {rate.limit} allowed"] = most
        return found

    def slowest(self) -> dict[str, list[float]]:
        """For each kind of fault, the slowest task that was published during each of them.

        Faults overlap: what one delays may be another's doing.
        """
        rows = sorted((row.published, row.seconds) for row in self.evidence.rows)
        starts = [published for published, _ in rows]
        result: dict[str, list[float]] = {}
        for one in self.faults:
            first = bisect_left(starts, one.begin - AROUND)
            last = bisect_left(starts, one.end + AROUND)
            slowest = max((seconds for _, seconds in rows[first:last]), default=0.0)
            result.setdefault(one.fault.kind, []).append(_tenths(slowest))
        return result

    def text(self) -> str:
        """As a table, in Markdown: it goes into the documentation as it is."""
        plan = self.plan
        slowest = self.slowest()
        lines = [
            f"Chaos run: {plan.tasks} tasks, seed {plan.seed}, {plan.services} services, "
            f"{plan.publishers} publishers, lease {plan.lease:g} s"
            + (f", SABOTAGED: {self.sabotage}" if self.sabotage else ""),
            "",
            "| fault | times | slowest task published meanwhile: median, most |",
            "|---|---|---|",
            *(
                f"| {MEANING[kind]} | {len(times)} | {median(times):.1f} s, {max(times):.1f} s |"
                for kind in KINDS
                if (times := slowest.get(kind))
            ),
            "",
            "| what | number |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in self.numbers().items()),
            "",
        ]
        if self.violations:
            lines += [f"FAILED: {len(self.violations)} violations", *map(str, self.violations)]
        else:
            lines.append("PASSED: every promise was kept")
        return "\n".join(lines)

    def write_json(self, path: Path) -> None:
        """The same with the schedule and all ids, for programs."""
        value = {
            "plan": asdict(self.plan),
            "sabotage": self.sabotage,
            "numbers": self.numbers(),
            "slowest": self.slowest(),
            "services": [asdict(service) for service in self.evidence.services],
            "faults": [asdict(one) for one in self.faults],
            "violations": [asdict(violation) for violation in self.violations],
            "passed": not self.violations,
        }
        path.write_text(json.dumps(value, indent=1, default=str))


def _tenths(seconds: float) -> float:
    return round(seconds, 1)
