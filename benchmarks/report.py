# SPDX-License-Identifier: Apache-2.0
"""What was found: samples, facts and failures, and how systems and measures are called."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmarks.catalogue import MEASURES
from benchmarks.consumers import CONSUMERS, RAW
from benchmarks.contestants import SYSTEMS

if TYPE_CHECKING:
    from benchmarks.measures import Sample
    from benchmarks.options import Options


@dataclass(kw_only=True)
class Report:
    """All that was found."""

    options: Options
    facts: dict[str, str]
    samples: list[Sample] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def of(self, measure: str, database: str, system: str) -> list[Sample]:
        """Return the samples of a measure, in the order of the rounds."""
        wanted = (measure, database, system)
        return [s for s in self.samples if (s.measure, s.database, s.system) == wanted]

    def by_round(self, measure: str, database: str, system: str) -> dict[int, Sample]:
        """Return the same by the round: what is compared ran side by side."""
        return {s.round_number: s for s in self.of(measure, database, system)}

    @property
    def kinds(self) -> list[tuple[str, str]]:
        """Return each (measure, database) once."""
        return sorted(
            {(s.measure, s.database) for s in self.samples},
            key=lambda kind: (list(MEASURES).index(kind[0]), kind[1]),
        )


def label_of(system: str, options: Options, measure: str | None = None) -> str:
    """What a system is called, of tasks or of a measure."""
    if system == RAW.key:
        return RAW.label
    if measure is not None and MEASURES[measure].of_messages:
        return CONSUMERS[measure, system].label
    return SYSTEMS[system].label.format(workers=options.workers)


def lacks_of(system: str, measure: str) -> str:
    """What a system does not promise, as letters; of messages nobody promises a row."""
    if MEASURES[measure].of_messages:
        return ""
    return "g" if system == RAW.key else SYSTEMS[system].lacks
