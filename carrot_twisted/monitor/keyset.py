# SPDX-License-Identifier: Apache-2.0
"""Pages of the lists of tasks that take the same time with a thousand rows and with ten million.

Each list has its order on an index, and a page goes on from a *position* in it (a keyset): no
OFFSET over many rows, no count of all. What the index answers is part of the query. Whatever else
is asked for (a task, a text) is looked for in *windows* of rows along that order, until the page is
full or the time is up; then the answer says where to go on.

The order is that of the rows' times and keys; of all rows, that of their keys alone, which are
time-ordered (version 7). Rows brought over from django-carrot have keys that tell no time: there
they follow behind all others, and are in no range of time.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from django.db import connections, router
from django.db.models import BooleanField, DateTimeField, F, Func, Q, TextField, UUIDField, Value
from django.db.models.functions import Cast
from django.utils import timezone

from carrot_twisted import statements
from carrot_twisted.models import MessageLog
from carrot_twisted.monitor import redaction
from carrot_twisted.state_words import of_states

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from carrot_twisted.message_log_set import MessageLogQuerySet

    Prepare = Callable[[MessageLogQuerySet], MessageLogQuerySet]

#: Seconds after which a page is answered with what was found.
BUDGET = 0.06
#: Rows in the first window: for each second that there is, and at least. Later ones grow while
#: they take less than a quarter of the time.
RATE, FIRST_WINDOW, LARGEST_WINDOW = 20_000, 1000, 64_000
#: The same where each row with the text is looked at once more.
LARGEST_TEXT_WINDOW = 16_000
#: So many of these are read at once: their arguments may be large.
TEXT_BATCH = 50
#: A row's key is made by its publisher, its ``publish_time`` by the database: so far apart are
#: these at most.
SKEW = timedelta(minutes=1)
#: Keys of later times are no times: those of rows that django-carrot made.
FUTURE = timedelta(days=1)
#: No row is older.
EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
#: Queues whose waiting rows are listed; each takes a look at the index.
MAX_QUEUES = 100


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The rows of some states, in the order of a time or, if that is "", of their keys."""

    states: tuple[str, ...] = ()
    time: str = ""
    led_by: str = ""
    """Column that stands before the time in the index."""
    scanned: str = "pk"
    """The column that the index has in any case: to count rows it is enough."""


LISTINGS: Mapping[str, Listing] = {
    "all": Listing(),
    "queued": Listing(
        states=MessageLog.UNFINISHED, time="publish_time", led_by="queue", scanned="queue"
    ),
    # There are as few of these as workers have threads: sorted for each page.
    "running": Listing(states=(MessageLog.IN_PROGRESS,), time="start_time", scanned="worker"),
    "failed": Listing(states=(MessageLog.FAILED,), time="failure_time", scanned="failure_time"),
    "completed": Listing(
        states=(MessageLog.COMPLETED,), time="completion_time", scanned="completion_time"
    ),
    "cancelled": Listing(
        states=(MessageLog.CANCELLED,), time="publish_time", scanned="publish_time"
    ),
}


class Position(NamedTuple):
    """A place in the order of a list: that of a row, which may be gone."""

    time: datetime | str | None
    """As the database compares it; None where only the key counts."""
    pk: UUID

    def __str__(self) -> str:
        """For an address; ``position`` reads it."""
        if self.time is None:
            return self.pk.hex
        text = self.time if isinstance(self.time, str) else self.time.isoformat()
        return f"{text.replace(' ', 'T')}_{self.pk.hex}"

    @property
    def when(self) -> datetime | None:
        """The time, for people; None if the key tells none."""
        if isinstance(self.time, str):
            return datetime.fromisoformat(self.time).replace(tzinfo=UTC)
        return time_of(self.pk) if self.time is None else self.time


def position(text: str, using: str) -> Position | None:
    """What ``str`` made of a position; None: the text is none."""
    moment, _, key = text.rpartition("_")
    if not re.fullmatch(r"[0-9a-f]{32}", key):
        return None
    if not moment:
        return Position(None, UUID(key))
    try:
        when = datetime.fromisoformat(moment)
    except ValueError:
        return None
    if (when.tzinfo is None) != _compares_texts(using):
        return None
    return Position(when if when.tzinfo else moment.replace("T", " "), UUID(key))


@dataclass(frozen=True, kw_only=True)
class Query:
    """Which rows, and in which order."""

    listing: str = "all"
    task: str = ""
    queue: str = ""
    worker: str = ""
    flow: UUID | None = None
    """Of this flow only."""
    text: str = ""
    """In the task's path, its arguments or its exception, in upper or lower case; as far as these
    are shown (``redaction``)."""
    since: datetime | None = None
    until: datetime | None = None
    """Of the list's time (of all rows: of publishing); what is of this very moment is not in it."""
    states: tuple[str, ...] = ()
    """Of the list's states only these; empty: all."""
    newest: Position | None = None
    """Nothing that is newer than this place: what is added meanwhile does not count."""
    oldest_first: bool = False

    @property
    def backwards(self) -> Query:
        """The same rows from the other end."""
        return replace(self, oldest_first=not self.oldest_first)

    def narrowed(self, states: tuple[str, ...], newest: Position | None) -> Query:
        """Of these rows those of some states, not newer than a place, the oldest first."""
        return replace(self, states=states, newest=newest, oldest_first=True)


@dataclass(frozen=True, kw_only=True)
class Found:
    """A page, or what was found of it in time."""

    rows: list[Any]
    """MessageLogs; what ``bare`` prepared may be Positions, which have a ``pk``, too."""
    position: Position | None
    """Go on from here; None: there is no more."""
    is_full: bool
    """Whether there are as many rows as were asked for, or no more."""
    looked: int
    """Through how many rows this went before the time was up, or the last window came."""


@dataclass(frozen=True, kw_only=True)
class Counted:
    """How many rows there are."""

    count: int
    is_exact: bool
    """Whether there are no more."""


def find(
    query: Query,
    limit: int,
    *,
    after: Position | None = None,
    using: str = "",
    budget: float = BUDGET,
    prepare: Prepare | None = None,
) -> Found:
    """The rows of a query that follow a position.

    Args:
        query: which rows, in which order.
        limit: how many.
        after: a place in that order; None: from its beginning.
        using: alias of the database; "": where rows are read.
        budget: seconds after which to give what was found until then.
        prepare: says what to load of the rows.
    """
    using = using or router.db_for_read(MessageLog)
    if "\0" in query.text:
        # No row has one, and databases do not take it.
        return Found(rows=[], position=None, is_full=True, looked=0)
    others = _others(query)
    rows: list[Any] = []
    looked, size = 0, max(FIRST_WINDOW, int(budget * RATE))
    largest = LARGEST_TEXT_WINDOW if query.text else LARGEST_WINDOW
    end = time.monotonic() + budget
    for section in _sections(query, after, using):
        start = section.start
        while True:
            began = time.monotonic()
            stop = None if others is None else section.ahead(start, size)
            # One more than is shown tells whether there is more.
            want = limit + 1 - len(rows)
            if query.text:
                rows += section.search(start, stop, others, want, prepare, query.text)
            else:
                rows += section.read(start, stop, others, want, prepare)
            if len(rows) > limit:
                del rows[limit:]
                return Found(rows=rows, position=place_of(rows[-1]), is_full=True, looked=looked)
            if stop is None:
                break
            looked += section.looked(start, stop, size)
            start, now = stop, time.monotonic()
            if now > end:
                is_full = len(rows) == limit
                return Found(rows=rows, position=stop, is_full=is_full, looked=looked)
            if now - began < budget / 4:
                size = min(size * 2, largest)
            elif now - began > budget / 2:
                size = max(size // 2, FIRST_WINDOW)
    return Found(rows=rows, position=None, is_full=True, looked=looked)


def count(query: Query, cap: int, *, using: str = "", budget: float = BUDGET) -> Counted:
    """How many rows a query has: up to ``cap``, and as far as that can be found out in time."""
    using = using or router.db_for_read(MessageLog)
    if _others(query) is not None:
        found = find(query, cap, using=using, budget=budget, prepare=bare)
        return Counted(count=len(found.rows), is_exact=found.position is None)
    rows = _rows(query, using).values(LISTINGS[query.listing].scanned)
    there = rows[: cap + 1].count()
    return Counted(count=min(there, cap), is_exact=there <= cap)


def newest(listing: str, using: str) -> Position | None:
    """Where the newest row of a list stands; None: there is none."""
    rows = find(Query(listing=listing), 1, using=using, prepare=bare).rows
    return place_of(rows[0]) if rows else None


def sample(listing: str, limit: int, *columns: str) -> list[tuple[Any, ...]]:
    """Values of the newest rows of a list, about so many."""
    using = router.db_for_read(MessageLog)
    for section in _sections(Query(listing=listing), None, using):
        return section.values(limit, columns)
    return []


def time_of(key: UUID) -> datetime | None:
    """When a time-ordered key was made; None: it is no such key."""
    if key.version != 7:
        return None
    return datetime.fromtimestamp((key.int >> 80) / 1000, UTC)


def first_key(when: datetime) -> UUID:
    """No key that was made at that time or later is smaller."""
    return UUID(int=max(int(when.timestamp() * 1000), 0) << 80)


def bare(rows: MessageLogQuerySet) -> MessageLogQuerySet:
    """For ``prepare``: no more than places is needed, and a model for each would cost the most."""
    return rows.only("pk")


def _searched(rows: MessageLogQuerySet) -> MessageLogQuerySet:
    return rows.only("pk", "task", "task_args", "content", "exception")


def place_of(row: MessageLog | Position) -> Position:
    """Where a row stands that ``find`` gave."""
    return row if isinstance(row, Position) else Position(getattr(row, "place", None), row.pk)


def _compares_texts(using: str) -> bool:
    """Whether times are compared as the texts that are stored.

    SQLite's Now() has milliseconds, Django's values have microseconds or no fraction: what reads
    back as the same time need not be the same text.
    """
    return connections[using].vendor == "sqlite"


@dataclass(frozen=True, kw_only=True)
class _Section:
    """A part of a list that has one order."""

    sources: list[MessageLogQuerySet]
    """Each has that order by an index; together they are merged."""
    time: str
    """Column of the order, before the key; "": the key alone."""
    is_timed: bool
    """Whether it has the rows with a time, not those without."""
    start: Position | None
    """Where in it to begin; None: at its beginning."""
    descending: bool
    using: str

    def read(
        self,
        start: Position | None,
        stop: Position | None,
        others: Q | None,
        limit: int,
        prepare: Prepare | None,
    ) -> list[Any]:
        """Up to ``limit`` rows after ``start``, up to and with ``stop``."""
        sources = [self._between(source, start, stop) for source in self.sources]
        if others is not None:
            sources = [source.filter(others) for source in sources]
        if len(sources) == 1 and prepare is bare:
            return self._places(sources[0], slice(limit))
        if len(sources) == 1:
            rows = sources[0] if prepare is None else prepare(sources[0])
            return list(self._ordered(rows)[:limit])
        # Keys first: only those rows are loaded that come out of the merge.
        places = [place for rows in sources for place in self._places(rows, slice(limit))]
        places.sort(reverse=self.descending)
        if prepare is bare:
            return places[:limit]
        return self._loaded([key for _, key in places[:limit]], prepare)

    def search(
        self,
        start: Position | None,
        stop: Position | None,
        others: Q | None,
        limit: int,
        prepare: Prepare | None,
        text: str,
    ) -> list[Any]:
        """As ``read``, of the rows that have a text: only those in which it is in sight.

        Nothing in an answer, such as where a search goes on, depends on the others.
        """
        kept: list[Any] = []
        while len(kept) < limit:
            batch = self.read(start, stop, others, TEXT_BATCH, _searched)
            kept += [row for row in batch if redaction.is_in_sight(row, text)]
            if len(batch) < TEXT_BATCH:
                break
            start = place_of(batch[-1])
        del kept[limit:]
        return kept if prepare is bare else self._loaded([row.pk for row in kept], prepare)

    def _loaded(self, keys: list[UUID], prepare: Prepare | None) -> list[MessageLog]:
        rows = MessageLog.objects.using(self.using).filter(pk__in=keys)
        return list(self._ordered(rows if prepare is None else prepare(rows)))

    def ahead(self, start: Position | None, size: int) -> Position | None:
        """The end of a window of about so many rows; None: fewer are left."""
        each = max(size // max(len(self.sources), 1), 1)
        sources = [self._between(source, start, None) for source in self.sources]
        ends = [end for rows in sources for end in self._places(rows, slice(each - 1, each))]
        if not ends:
            return None
        # The nearest: up to there no source has more rows than were counted off.
        return max(ends) if self.descending else min(ends)

    def looked(self, start: Position | None, stop: Position, size: int) -> int:
        """How many rows are in a window that ``ahead`` has given."""
        if len(self.sources) == 1:
            return size
        return sum(self._between(source, start, stop).count() for source in self.sources)

    def values(self, limit: int, columns: tuple[str, ...]) -> list[tuple[Any, ...]]:
        """Columns of the first rows, as many of each source."""
        each = limit // max(len(self.sources), 1)
        sources: Any = [self._ordered(self._between(rows, None, None)) for rows in self.sources]
        return [row for rows in sources for row in rows.values_list(*columns)[:each]]

    def _places(self, rows: MessageLogQuerySet, which: slice) -> list[Position]:
        ordered: Any = self._ordered(rows)
        if not self.time:
            return [Position(None, key) for key in ordered.values_list("pk", flat=True)[which]]
        return [Position(*row) for row in ordered.values_list("place", "pk")[which]]

    def _ordered(self, rows: MessageLogQuerySet) -> MessageLogQuerySet:
        sign = "-" if self.descending else ""
        if not self.time:
            return rows.order_by(f"{sign}pk")
        place = Cast(self.time, TextField()) if _compares_texts(rows.db) else F(self.time)
        return rows.annotate(place=place).order_by(f"{sign}{self.time}", f"{sign}pk")

    def _between(
        self, rows: MessageLogQuerySet, start: Position | None, stop: Position | None
    ) -> MessageLogQuerySet:
        further, nearer = ("<", ">=") if self.descending else (">", "<=")
        if start is not None:
            rows = rows.filter(_beside(self.time, start, further))
        if stop is not None:
            rows = rows.filter(_beside(self.time, stop, nearer))
            if start is not None and stop.time is not None:
                # Of two comparisons of pairs SQLite's index answers one only.
                lookup = "gte" if self.descending else "lte"
                rows = rows.filter(**{f"{self.time}__{lookup}": _value(stop.time)})
        if self.is_timed and start is None and stop is None:
            # Rows without a time are another part. Said as a comparison, it makes SQLite take the
            # index whose order this is; beside others it would make PostgreSQL expect too few rows.
            rows = rows.filter(**{f"{self.time}__gte": EARLIEST})
        return rows


def _beside(column: str, place: Position, operator: str) -> Q | Func:
    """Rows on one side of a place in the order of that column and the key.

    ``(time, key) < (its time, its key)``: an index on the time answers it. The same in AND and OR
    makes PostgreSQL expect far too few rows, and sort all that it finds.
    """
    if not column or place.time is None:
        lookup = {"<": "lt", "<=": "lte", ">": "gt", ">=": "gte"}[operator]
        return Q(**{f"pk__{lookup}": place.pk})
    here = Func(F(column), F("pk"), template="(%(expressions)s)")
    there = Func(_value(place.time), Value(place.pk, UUIDField()), template="(%(expressions)s)")
    joiner = f" {operator} "
    kind = BooleanField()
    return Func(here, there, template="%(expressions)s", arg_joiner=joiner, output_field=kind)


def _value(when: datetime | str) -> Value:
    return Value(when, TextField() if isinstance(when, str) else DateTimeField())


def _sections(query: Query, after: Position | None, using: str) -> Iterator[_Section]:
    """The parts of a list, in order, from a position on."""
    column = LISTINGS[query.listing].time
    parts = _by_time(query, using) if column else _by_key(query, using)
    if query.newest is not None:
        parts = _up_to(query.newest, column, parts)
    start = after
    for part in reversed(parts) if query.oldest_first else parts:
        if start is not None and not part.is_here(start):
            continue
        yield _Section(
            sources=part.sources,
            time=column,
            is_timed=part.is_timed,
            start=start,
            descending=not query.oldest_first,
            using=using,
        )
        start = None


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A section, wherever in it one begins, from whichever end."""

    sources: list[MessageLogQuerySet]
    is_here: Callable[[Position], bool]
    """Whether a place is in it."""
    is_timed: bool = False
    """Whether it has the rows with a time, not those without."""


def _up_to(newest: Position, column: str, parts: list[_Part]) -> list[_Part]:
    while parts and not parts[0].is_here(newest):
        parts = parts[1:]
    if not parts:
        return []
    first, *rest = parts
    bound = _beside(column, newest, "<=")
    return [replace(first, sources=[rows.filter(bound) for rows in first.sources]), *rest]


def _rows(query: Query, using: str) -> MessageLogQuerySet:
    """What the index of the list answers."""
    listing = LISTINGS[query.listing]
    rows = MessageLog.objects.using(using)
    if listing.states:
        rows = rows.filter(of_states(listing.states))
    if query.flow is not None:
        rows = rows.filter(flow=query.flow)
    if listing.led_by and query.queue:
        rows = rows.filter(queue=query.queue)
    if listing.time and query.since is not None:
        rows = rows.filter(**{f"{listing.time}__gte": query.since})
    if listing.time and query.until is not None:
        rows = rows.filter(**{f"{listing.time}__lt": query.until})
    return rows


def _by_key(query: Query, using: str) -> list[_Part]:
    rows = _rows(query, using)
    future = first_key(timezone.now() + FUTURE)
    if query.since is None and query.until is None:
        return [
            _Part(sources=[rows.filter(pk__lt=future)], is_here=lambda place: place.pk < future),
            _Part(sources=[rows.filter(pk__gte=future)], is_here=lambda place: place.pk >= future),
        ]
    rows = rows.filter(pk__lt=first_key(query.until + SKEW) if query.until else future)
    if query.since is not None:
        rows = rows.filter(pk__gte=first_key(query.since - SKEW))
    return [_Part(sources=[rows], is_here=lambda _: True)]


def _by_time(query: Query, using: str) -> list[_Part]:
    listing = LISTINGS[query.listing]
    rows = _rows(query, using)
    sources = [rows]
    if listing.led_by and not query.queue:
        names = statements.queues_with(MessageLog._meta.db_table, listing.states, MAX_QUEUES, using)
        sources = [rows.filter(queue=name) for name in names]
    timed = _Part(sources=sources, is_here=lambda place: place.time is not None, is_timed=True)
    is_nullable = MessageLog._meta.get_field(listing.time).null
    if not is_nullable or query.since is not None or query.until is not None:
        return [timed]
    # Rows of others may lack their time. They are ordered by it, too: by the key alone PostgreSQL
    # would go through all keys for them.
    timeless = rows.filter(**{f"{listing.time}__isnull": True})
    return [
        timed,
        _Part(sources=[timeless], is_here=lambda place: place.time is None),
    ]


def _others(query: Query) -> Q | None:
    """What no index answers, to be looked for in windows; None: nothing."""
    listing = LISTINGS[query.listing]
    found = Q()
    if query.task:
        found &= Q(task=query.task)
    if query.queue and listing.led_by != "queue":
        found &= Q(queue=query.queue)
    if query.worker:
        found &= Q(worker=query.worker)
    if query.states and not (listing.states and set(listing.states) <= set(query.states)):
        found &= of_states(query.states)
    if not listing.time:
        # The keys' times are near these, no more.
        if query.since is not None:
            found &= Q(publish_time__gte=query.since)
        if query.until is not None:
            found &= Q(publish_time__lt=query.until)
    if query.text:
        found &= _contains(query.text)
    return found if found else None


def _contains(text: str) -> Q:
    found = Q(task__icontains=text) | Q(exception__icontains=text)
    # As people write it, and as it is written in JSON.
    for one in dict.fromkeys((text, json.dumps(text, ensure_ascii=False)[1:-1])):
        found |= Q(task_args__icontains=one) | Q(content__icontains=one)
    return found
