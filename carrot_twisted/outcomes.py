# SPDX-License-Identifier: Apache-2.0
"""What came of a run, and the pure decisions about it. No ORM, no reactor, no clock."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from carrot_twisted import wire
from carrot_twisted.exceptions import UnknownResult

if TYPE_CHECKING:
    from collections.abc import Iterator


#: Characters that are kept of the path of an exception's class.
MAX_CLASS = 255
#: Class of the exception that a row has whose worker was lost: there was none to tell.
WORKER_LOST = "carrot_twisted.exceptions.WorkerLost"
#: What a row says of its output, if that tells the value that was returned: it is that as JSON, or
#: that very text. Else there stands the value as JSON, or nothing.
IS_JSON, IS_TEXT = "=", '"'


class Kind(Enum):
    """What a run's result asks of its row."""

    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    """It was asked to end, and did."""
    RELEASED = "PUBLISHED"
    """Not the task's fault: back into the outbox, to run again later."""
    RETRY = "RETRY"
    """It has failed, and is to be tried again: back into the outbox, one retry less to come."""

    @property
    def is_final(self) -> bool:
        """Whether the row has come to its end."""
        return self in (Kind.COMPLETED, Kind.FAILED, Kind.CANCELLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The end of one run, ready to be written: every text is storable."""

    kind: Kind
    output: str | None = None
    returned: str | None = None
    """What the output tells of the value, see ``returned_text``."""
    exception: str | None = None
    traceback: str | None = None
    exception_class: str | None = None
    """Its dotted path."""
    log: str | None = ""
    """None: the database refused the texts of this run."""
    started: float = 0.0
    """Seconds since the epoch, on this host's clock."""
    ended: float = 0.0
    delay: float = 0.0
    """For RELEASED and RETRY: seconds until it is tried again."""
    progress: str | None = None
    """What the task has told last of how far it is, as JSON; None: it did not say."""


class Verdict(Enum):
    """What a claim says about one delivery."""

    MINE = "claimed: run it"
    FINAL = "the row has come to its end: acknowledge, do not run"
    ELSEWHERE = "another living worker runs it: acknowledge, the database has custody"
    MISSING = "no such row (yet)"
    SUSPECT = "workers were lost under it: claim it again when nothing else runs here"
    LOST = "too many workers were lost under it: it is FAILED now, acknowledge"
    LIMITED = "its limits let no more start: it waits in the table, acknowledge"
    EARLY = "it is to run later, and its message will come again: acknowledge"


#: SQLSTATEs of two transactions in each other's way: serialisation failure, deadlock (40), lock
#: timeout (55P03).
_CONFLICT_STATES = ("40", "55P03")
#: SQLSTATEs that blame the database or the company, not the statement: connection trouble (08),
#: read-only, as a standby is (25006), out of resources (53), cancelled by an operator or by
#: shutdown (57P), its disk (58), damaged data (XX001, XX002), conflicts.
_TRANSIENT_STATES = (
    *("08", "25006", "53", "57P", "58000", "58030", "XX001", "XX002"),
    *_CONFLICT_STATES,
)
#: SQLSTATE of a statement that took longer than statement_timeout allows, or that somebody has
#: cancelled. A task's own statement is at fault then; the service's own are tried again.
_CANCELLED_STATE = "57014"
#: Seconds that a run waits at most which the database has spoiled, however often.
RELEASE_LAST = 10
#: SQLite's primary result codes that blame the file or its disk: BUSY, LOCKED, READONLY, IOERR,
#: CORRUPT, FULL, CANTOPEN, PROTOCOL, NOTADB.
_SQLITE_TRANSIENT = (5, 6, 8, 10, 11, 13, 14, 15, 26)


def causes(error: BaseException) -> Iterator[BaseException]:
    """The exception and all that led to it."""
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        one = todo.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            yield one
            # As a traceback shows them: ``raise … from None`` says the context is no reason.
            todo.append(one.__cause__ or (None if one.__suppress_context__ else one.__context__))


def blames_database(error: BaseException) -> bool:
    """Whether an exception that ended a task tells of the database's state, not of the task.

    True also for a lost connection. A missing table or a bad value is the task's own failure.
    """
    return any(_is_transient(one) for one in causes(error))


def is_conflict(error: BaseException) -> bool:
    """Whether another transaction was in the way: the database is there, and repeating helps.

    Also where a statement was cancelled, for its time or by somebody.
    """
    states = (*_CONFLICT_STATES, _CANCELLED_STATE)
    return any((_state(one) or "").startswith(states) for one in causes(error))


def is_refusal(error: BaseException) -> bool:
    """Whether the database refuses a value, or a trigger of the project's does: repeating is vain.

    Classes of SQLSTATEs: data exception (22), constraint violation (23), raised by PL/pgSQL (P0).
    """
    if type(error).__name__ in ("DataError", "IntegrityError"):
        return True
    return any((_state(one) or "").startswith(("22", "23", "P0")) for one in causes(error))


def _state(error: BaseException) -> str | None:
    state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    return state if isinstance(state, str) else None


def _is_transient(error: BaseException) -> bool:
    module, name = type(error).__module__, type(error).__name__
    state = _state(error)
    if state is not None:
        return state.startswith(_TRANSIENT_STATES)
    if module == "django.db.utils":
        # A file that a task opens past Django is the task's own affair.
        code = getattr(error.__cause__, "sqlite_errorcode", None)
        if isinstance(code, int):
            return code & 0xFF in _SQLITE_TRANSIENT
    if name == "OperationalError":
        # psycopg gives a lost or refused connection no SQLSTATE.
        return module.startswith("psycopg")
    return name == "InterfaceError" and "clos" in str(error)


def release_delay(attempt: int) -> float:
    """Seconds until a run that the database spoiled is tried again: 1, 2, 4 … RELEASE_LAST.

    No longer: when the database is well again, work goes on within seconds.
    """
    return float(min(RELEASE_LAST, 2 ** max(0, attempt - 1)))


def stored(text: str, limit: int) -> str:
    """``text`` as every database takes it: without NUL and lone surrogates, cut at ``limit``."""
    if len(text) > limit:
        text = f"{text[:limit]}… (cut: {len(text) - limit} of {len(text)} characters)"
    if "\x00" in text:
        text = text.replace("\x00", "\\x00")
    if not text.isascii():
        text = text.encode("utf-8", "backslashreplace").decode()
    return text


#: Control characters, line ends of every kind, and what turns the direction of writing.
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def one_line(text: str, limit: int) -> str:
    """A text of somebody else's, fit for a line of the service's log.

    What could begin another line, or hide or colour one, is shown as an escape.
    """
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text[:limit])


def output_text(value: Any, limit: int) -> str | None:
    """How a task's return value is kept: None as None, text as it is, dictionaries as JSON.

    A value that cannot be told is described; a result never turns a success into a failure.
    """
    if value is None:
        return None
    try:
        if isinstance(value, dict):
            try:
                text = json.dumps(value, ensure_ascii=False)
            except (TypeError, ValueError):
                text = str(value)
        else:
            text = str(value)
        return stored(text, limit)
    except BaseException as error:
        return f"(the result of type {type(value).__name__} has no text: {type(error).__name__})"


def returned_text(value: Any, output: str | None, limit: int) -> str | None:
    """What a row keeps beside its output, so that ``value_of`` gives the value again.

    Args:
        value: what a task has returned.
        output: how its row shows that, see ``output_text``.
        limit: characters that are kept.

    Returns:
        None: the output is none; or the value cannot be told exactly, or takes more than ``limit``.
    """
    kind = type(value)
    if output is None:
        return None
    if kind is str and value == output:
        return IS_TEXT
    if kind is int and output.lstrip("-").isdecimal():
        # Of more digits than Python tells there is none.
        return IS_JSON
    try:
        text = wire.exact_json(value, "result")
    except BaseException:
        # A class of the project's may raise anything when it is compared.
        return None
    if len(text) > limit:
        return None
    return IS_JSON if text == output else text


def value_of(output: str | None, returned: str | None) -> Any:
    """What a task has returned, by its row.

    Raises:
        UnknownResult: the row does not know.
    """
    return json.loads(json_of(output, returned))


def json_of(output: str | None, returned: str | None) -> str:
    """The same as JSON.

    Raises:
        UnknownResult: the row does not know.
    """
    if output is None:
        return "null"
    if returned is None:
        raise UnknownResult(f"Its result is only known as a text for people: {output[:100]!r}.")
    if returned == IS_JSON:
        return output
    if returned == IS_TEXT:
        return json.dumps(output, ensure_ascii=False)
    return returned


def exception_line(error: BaseException, limit: int) -> str:
    """``exception_text`` in one line, for a log.

    PostgreSQL's words may come with hints, on lines of their own. Of a conflict these name the
    transactions, and differ each time; so they are left out.
    """
    text = exception_text(error, limit)
    if is_conflict(error):
        text = text.partition("\n")[0]
    text = " ".join(text.split())
    return one_line(text, len(text))


def exception_class(error: BaseException) -> str:
    """The dotted path of an exception's class."""
    try:
        kind = type(error)
        return stored(f"{kind.__module__}.{kind.__qualname__}"[:MAX_CLASS], MAX_CLASS)
    except BaseException:
        # A metaclass of the project's may do anything.
        return "builtins.BaseException"


def exception_text(error: BaseException, limit: int) -> str:
    """The message of an exception, or its type if it has none or cannot tell it."""
    try:
        return stored(str(error) or type(error).__name__, limit)
    except BaseException as again:
        return f"{type(error).__name__} (its text raised {type(again).__name__})"
