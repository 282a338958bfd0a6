# SPDX-License-Identifier: Apache-2.0
"""Which fault comes when: a pure function of the plan and its seed.

Faults that need the same thing follow each other on one *lane* (the broker cannot be killed while
it is being restarted); the lanes know nothing of each other, so faults of different kinds overlap.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Whose connections to what can be spoilt.
PATHS = ("service-broker", "publisher-broker", "service-database", "publisher-database")
#: Every fault there is, with the lane it happens on.
KINDS: dict[str, str] = {
    "kill-service": "services",
    "stop-service": "services",
    "freeze-service": "services",
    "kill-publisher": "publishers",
    "kill-broker": "broker",
    "restart-broker": "broker",
    "delete-queue": "broker",
    "crash-database": "database",
    "restart-database": "database",
    "cut": "network",
    "black-hole": "network",
    "one-way": "network",
    "delay": "network",
    "refuse": "network",
    "torn-frame": "network",
    "poison": "poison",
}
MEANING = {
    "kill-service": "kill -9 of a service, which is replaced",
    "stop-service": "SIGTERM to a service, which is replaced",
    "freeze-service": "SIGSTOP of a service for longer than its lease",
    "kill-publisher": "kill -9 of a publisher, which is replaced",
    "kill-broker": "kill -9 of the broker",
    "restart-broker": "clean stop and start of the broker",
    "delete-queue": "the work queue is deleted, with what is in it",
    "crash-database": "immediate stop of the database, as a crash",
    "restart-database": "fast stop and start of the database",
    "cut": "all connections of a path are reset",
    "black-hole": "nothing passes a path, either way",
    "one-way": "nothing passes a path one way",
    "delay": "a path takes 0.2 to 0.4 s each way",
    "refuse": "a path takes no new connections, after a cut",
    "torn-frame": "each connection of a path ends in the middle of a frame",
    "poison": "a message that no task can be made of",
}
#: Threads of one service, for all its queues.
THREADS = 6
#: Target of a deletion that waits until the queue is consumed.
CONSUMED = "when it is consumed"
#: After these a run may be lost, so that a task may run, or have an effect, a second time.
INTERRUPTING = frozenset(KINDS) - {"stop-service", "kill-publisher", "delay", "poison"}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run consists of; with its seed it decides about everything that is left to chance."""

    tasks: int
    seed: int
    services: int
    publishers: int
    seconds: float
    """In which tasks are published and faults begin."""
    lease: float
    counts: Mapping[str, int] = field(default_factory=dict)
    """How often each kind of fault comes."""

    @property
    def mean_task(self) -> float:
        """Seconds that a task takes in the mean: so many that faults meet tasks that run, and that
        what an outage has held up is done in about the time that the outage took."""
        return 0.3 * THREADS * self.services * self.seconds / self.tasks


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault. ``at`` and ``seconds`` are those planned; a slow machine may take longer."""

    at: float
    """Seconds from the start."""
    kind: str
    seconds: float = 0.0
    """How long it lasts, without the time that a server needs to start."""
    target: str = ""
    """A path; for services and publishers their place, as ``0``; for a queue, ``CONSUMED`` or
    nothing. A service's path has its place behind it, or ``*`` for all: ``service-broker:1``."""
    cut: bool = False
    """The connections of a path are reset in the end, before it is mended."""
    way: str = ""
    """``up`` or ``down``: the direction that a one-way fault or a torn frame is about."""
    amount: int = 0
    """Bytes after which a connection is torn; number of a poisonous message."""

    @property
    def lane(self) -> str:
        return KINDS[self.kind]

    def __str__(self) -> str:
        parts = [f"{self.at:6.1f} s  {self.kind}"]
        if self.target:
            parts.append(self.target)
        if self.way:
            parts.append(self.way)
        if self.kind == "torn-frame":
            parts.append(f"after {self.amount} bytes")
        if self.seconds:
            parts.append(f"for {self.seconds:.1f} s")
        if self.cut:
            parts.append("and cut")
        return " ".join(parts)


def schedule(plan: Plan) -> list[Fault]:
    """All faults of the plan, in order of time."""
    faults: list[Fault] = []
    for lane in dict.fromkeys(KINDS.values()):
        chance = random.Random(f"{plan.seed} {lane}")
        kinds = [
            kind
            for kind, of_lane in KINDS.items()
            if of_lane == lane
            for _ in range(plan.counts.get(kind, 0))
        ]
        chance.shuffle(kinds)
        faults += _lane(kinds, plan, chance)
    return sorted(faults, key=lambda fault: (fault.at, fault.kind))


def _lane(kinds: Sequence[str], plan: Plan, chance: random.Random) -> list[Fault]:
    """One fault in each of equal parts of the time, somewhere in it."""
    faults = []
    first_path = chance.randrange(len(PATHS))
    seen: dict[str, int] = {}
    for number, kind in enumerate(kinds):
        width = plan.seconds / len(kinds)
        seconds = _seconds(kind, plan, chance)
        latest = max(0.0, width - seconds)
        at = number * width + chance.uniform(0.1 * latest, 0.9 * latest)
        turn = seen[kind] = seen.get(kind, -1) + 1
        target, cut, way, amount = "", False, "", 0
        if KINDS[kind] == "services":
            target = str(chance.randrange(plan.services))
        elif KINDS[kind] == "publishers":
            target = str(chance.randrange(plan.publishers))
        elif KINDS[kind] == "network":
            # Turn by turn: four faults of a kind meet all four paths.
            target = PATHS[(first_path + turn) % len(PATHS)]
            if target.startswith("service"):
                target += f":{chance.choice([*map(str, range(plan.services)), '*'])}"
            cut = kind in ("black-hole", "one-way", "torn-frame") and chance.random() < 0.5
            if kind in ("one-way", "torn-frame"):
                way = chance.choice(["up", "down"])
            if kind == "torn-frame":
                amount = chance.randint(1, 4000)
        elif kind == "delete-queue":
            # Turn by turn: under its consumers, who are told so, and whenever it may be.
            target = "" if turn % 2 else CONSUMED
        elif kind == "poison":
            amount = number
        faults.append(
            Fault(
                at=round(at, 2),
                kind=kind,
                seconds=round(seconds, 2),
                target=target,
                cut=cut,
                way=way,
                amount=amount,
            )
        )
    return faults


def _seconds(kind: str, plan: Plan, chance: random.Random) -> float:
    match kind:
        case "freeze-service":
            # Long enough to be taken for dead, and for its tasks to be run elsewhere: others look
            # for dead workers every three seconds.
            return plan.lease + 3 + chance.uniform(2, 4)
        case "kill-broker" | "restart-broker" | "crash-database" | "restart-database":
            return chance.uniform(0.5, 3)
        case "black-hole" | "one-way":
            return chance.uniform(1.5, 3) if chance.random() < 0.7 else plan.lease * 1.5
        case "delay" | "refuse" | "torn-frame":
            return chance.uniform(1.5, 3)
    return 0.0
