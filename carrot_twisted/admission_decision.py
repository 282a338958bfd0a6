# SPDX-License-Identifier: Apache-2.0
"""Which rows under limits may start at one moment: a decision, by what stands in the limits' rows.

``admission`` carries it out, while nobody else decides about the same limits.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from uuid import UUID

#: Starts are kept by the moment at which they began, rounded up to this part of the period.
PARTS = 100
#: Rows of one limit that are looked at together, at most.
READ = 100
#: Seconds until a limit with waiting rows is looked at, should nobody have done so before.
SAFETY = 30.0
#: Seconds for which a slot is kept for a task whose message was sent for it.
RESERVED = 10.0
#: Seconds after which a task that could start gets a message: no service has had a free thread.
OVERDUE = 3.0


@dataclass(slots=True, kw_only=True)
class Candidate:
    """A row that waits, and is under a limit."""

    uuid: UUID
    task: str
    queue: str
    priority: int
    since: float
    """When it was published, in seconds since the epoch."""
    slot: str | None
    rate: str | None
    """The names of its limits."""
    waits_for: str | None
    """The one that it waits for, as far as that is known."""
    delivered: bool = False
    """Its message is here: somebody has a thread for it."""
    apart: bool = False
    """Workers were lost under it: it is to run where nothing else does."""

    @property
    def names(self) -> list[str]:
        """Those that it has."""
        return [name for name in (self.slot, self.rate) if name is not None]


@dataclass(slots=True)
class Slots:
    """The slots of one key."""

    limit: float
    running: int
    now: float
    reserved: dict[str, float] = field(default_factory=dict)
    """For whom one is kept, by primary key, and until when."""

    @classmethod
    def of(cls, text: str, limit: float, running: int, now: float) -> Slots:
        """As they stand in the table."""
        kept = json.loads(text) if text else {}
        return cls(limit, running, now, {key: end for key, end in kept.items() if end > now})

    @property
    def free(self) -> float:
        """How many anybody may have."""
        return self.limit - self.running - len(self.reserved)

    def has_one_for(self, uuid: UUID) -> bool:
        """Whether this row may have one."""
        return self.free + (str(uuid) in self.reserved) > 0

    def take(self, uuid: UUID) -> None:
        """This row runs."""
        self.reserved.pop(str(uuid), None)
        self.running += 1

    def keep(self, uuid: UUID) -> None:
        """Keep one for this row, whose message is sent."""
        self.reserved[str(uuid)] = self.now + RESERVED

    @property
    def next(self) -> float:
        """When to look at it, should nobody do so before."""
        return self.now if self.free > 0 else self.now + SAFETY

    @property
    def text(self) -> str:
        """For the table."""
        return json.dumps(self.reserved) if self.reserved else ""


@dataclass(slots=True)
class Window:
    """The starts of one key in the last period.

    They are kept rounded up to a hundredth of the period: so no period ever has more than the
    limit, and the row never more than about a hundred numbers.
    """

    limit: float
    per: float
    now: float
    starts: list[list[float]]
    """A moment, and how many: in order."""
    asked: int = 0
    """Starts that others were sent a message for just now."""

    @classmethod
    def of(cls, text: str, limit: float, per: float, now: float) -> Window:
        """As it stands in the table."""
        window = cls(limit, per, now, [])
        last = window._rounded
        for moment, count in json.loads(text) if text else []:
            # A clock that was set back must not bar anybody for longer than a period.
            end = min(moment, last)
            if end + per > now:
                window.starts.append([end, count])
        return window

    @property
    def _rounded(self) -> float:
        step = self.per / PARTS
        return math.ceil(self.now / step) * step

    @property
    def free(self) -> float:
        """How many may start now."""
        return self.limit - self.asked - sum(count for _, count in self.starts)

    def take(self) -> None:
        """One starts."""
        moment = self._rounded
        if self.starts and self.starts[-1][0] == moment:
            self.starts[-1][1] += 1
        else:
            self.starts.append([moment, 1])

    @property
    def next(self) -> float:
        """When the next one may start."""
        free = self.limit - sum(count for _, count in self.starts)
        for moment, count in self.starts:
            if free > 0:
                break
            free += count
            if free > 0:
                return moment + self.per
        return self.now

    @property
    def text(self) -> str:
        """For the table."""
        return json.dumps(self.starts) if self.starts else ""


State: TypeAlias = Slots | Window


@dataclass(slots=True)
class Decision:
    """What is to be done about candidates."""

    start: list[Candidate] = field(default_factory=list)
    """They run here, now."""
    ring: list[Candidate] = field(default_factory=list)
    """They may start, but not here: each gets a message."""
    wait: dict[UUID, str] = field(default_factory=dict)
    """By primary key, the limit that they wait for from now on."""
    left: set[str] = field(default_factory=set)
    """Limits of which rows are left that wait for them."""


def decide(
    candidates: Iterable[Candidate],
    states: Mapping[str, State],
    places: Mapping[str, int],
    overdue: frozenset[str] = frozenset(),
) -> Decision:
    """Which rows may start: those of a higher priority first, among these the oldest.

    ``states`` is told of those that may.

    Args:
        candidates: of all limits in question the first ones, and those whose message is here. Each
            of the latter brings a thread, which an older one may have instead.
        states: the limits, by name; what is not among them is no limit.
        places: how many may run here whose message is not here, by queue. Of queues that are not
            named nothing is run here.
        overdue: limits for which nobody has had a place for long: their tasks get messages.
    """
    decision = Decision()
    ordered = sorted(candidates, key=lambda one: (-one.priority, one.since, one.uuid))
    room = dict(places)
    for one in ordered:
        if one.delivered and one.queue in room:
            room[one.queue] += 1
    for one in ordered:
        lacking = _lacking(one, states)
        if lacking is not None:
            decision.left.add(lacking)
            if one.waits_for != lacking:
                decision.wait[one.uuid] = lacking
        elif one.delivered or (not one.apart and room.get(one.queue, 0) > 0):
            if one.queue in room:
                room[one.queue] -= 1
            _take(one, states)
            decision.start.append(one)
        elif one.apart or one.queue not in room or one.waits_for in overdue:
            _keep(one, states)
            decision.ring.append(one)
        else:
            name = one.waits_for or one.names[0]
            decision.left.add(name)
            if one.waits_for is None:
                decision.wait[one.uuid] = name
    return decision


def _lacking(one: Candidate, states: Mapping[str, State]) -> str | None:
    """The first of a row's limits that does not let it start; None: it may."""
    for name in one.names:
        state = states.get(name)
        if isinstance(state, Slots):
            has_one = state.has_one_for(one.uuid)
        else:
            # No worker knows the limit any more: it is none.
            has_one = state is None or state.free > 0
        if not has_one:
            return name
    return None


def _take(one: Candidate, states: Mapping[str, State]) -> None:
    for name in one.names:
        state = states.get(name)
        if isinstance(state, Slots):
            state.take(one.uuid)
        elif state is not None:
            state.take()


def _keep(one: Candidate, states: Mapping[str, State]) -> None:
    for name in one.names:
        state = states.get(name)
        if isinstance(state, Slots):
            state.keep(one.uuid)
        elif state is not None:
            state.asked += 1
