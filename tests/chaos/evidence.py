# SPDX-License-Identifier: Apache-2.0
"""What a run leaves behind, as plain values: the oracle's only food."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of carrot_twisted_messagelog."""

    uuid: str
    key: str
    task: str
    status: str
    attempts: int
    crashes: int
    exception: str | None = None
    published: float = 0.0
    """Seconds since the epoch, on the database's clock: this machine's."""
    ended: float | None = None
    slot: str | None = None
    """Names of its limits."""
    rate: str | None = None

    @property
    def seconds(self) -> float:
        """From publishing to the end."""
        return max(0.0, (self.ended or self.published) - self.published)


@dataclass(frozen=True, kw_only=True)
class ServiceFacts:
    """One service process that lived to the end."""

    name: str
    threads: int
    threads_at_start: int
    files: int
    files_at_start: int
    memory: int
    memory_at_start: int
    """Resident, in bytes."""
    exit_status: int
    """After SIGTERM."""
    connections: int
    """To the broker."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """So many starts in any period."""

    limit: int
    per: float


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All of it."""

    publishes: Sequence[Mapping[str, Any]] = ()
    """Records of the publishers' ledger."""
    effects: Sequence[Mapping[str, Any]] = ()
    """Records of the tasks' ledger."""
    begins: Sequence[Mapping[str, Any]] = ()
    """Records of those tasks' ledger that are under limits."""
    rows: Sequence[Row] = ()
    lost: Mapping[tuple[str, int], float] = field(default_factory=dict)
    """Attempts that came to nothing, by the row's id and the attempt's number, and when that was
    noted: from then on they hold no slot."""
    starts: Sequence[tuple[str, str, float | None]] = ()
    """Of each start under a rate the row's id, the rate's name, and when it was counted."""
    at_once: Mapping[str, int] = field(default_factory=dict)
    """By the group of a limit, how many runs of one key there may be at once."""
    rates: Mapping[str, Rate] = field(default_factory=dict)
    """By the group of a rate."""
    notes: frozenset[str] = frozenset()
    """Keys that publishers wrote into their own table, beside publishing."""
    illegal: Sequence[str] = ()
    """What the database's trigger saw: changes of final rows."""
    queues: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Ready and unacknowledged messages of each queue."""
    dead: Sequence[str] = ()
    """Bodies of dead letters."""
    poison: Sequence[str] = ()
    """Bodies of poisonous messages that the broker confirmed."""
    services: Sequence[ServiceFacts] = ()
    unexpected_ends: Sequence[str] = ()
    """Services and publishers that ended by themselves."""
    tracebacks: Sequence[str] = ()
    """Last lines of unexpected tracebacks in logs."""
    secrets: Sequence[str] = ()
    """Files in which a password was found."""
    seconds_to_final: float | None = 0.0
    """From the last fault or publish until every row was final; None: given up."""
    interrupting: int = 0
    """Faults in this run that may have interrupted a task."""
