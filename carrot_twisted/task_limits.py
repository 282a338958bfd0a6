# SPDX-License-Identifier: Apache-2.0
"""How many tasks may run at once, or start in a while, over all services: as tasks say it.

A *limit* here is one of these for one key. It has a name, which stands in the rows of tasks that
are under it: "slot", or "rate", then its group (the task's path, unless tasks share one), then the
key.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeAlias

from carrot_twisted.exceptions import InvalidMessage
from carrot_twisted.kinds import is_int, is_seconds

if TYPE_CHECKING:
    from collections.abc import Callable

    Key: TypeAlias = str | Callable[..., str]

#: The largest number of a limit.
MAX_COUNT = 1_000_000
#: Seconds of the longest period of a rate: a week.
MAX_PERIOD = 7 * 86_400
#: Longest name of a group: as long as a task's path.
MAX_GROUP = 200
#: First word of a limit's name.
SLOT, RATE = "slot", "rate"


@dataclass(frozen=True, slots=True)
class Concurrency:
    """At most so many runs at once, over all services, of tasks with the same key.

    Args:
        limit: how many.
        key: a text such as "account:{account_id}", with parameters of the task; or a function of
            its arguments that returns the key. None: one limit for all runs of the task.
        group: a name, for tasks that share their slots; None: each task has its own.

    Raises:
        InvalidMessage: a value makes no sense.
    """

    limit: int
    key: Key | None = None
    group: str | None = None

    def __post_init__(self) -> None:
        _check_count("limit of Concurrency", self.limit)
        _check_names("Concurrency", self.key, self.group)


@dataclass(frozen=True, slots=True)
class Rate:
    """At most so many starts in any period of this length, over all services, with the same key.

    The window slides: after a burst of ``limit`` starts the next one comes when the first of them
    is ``per`` seconds old.

    Args:
        limit: how many.
        per: length of the period in seconds, or a timedelta; a week at most.
        key: as of ``Concurrency``.
        group: as of ``Concurrency``.

    Raises:
        InvalidMessage: a value makes no sense.
    """

    limit: int
    per: timedelta | float = 1.0
    key: Key | None = None
    group: str | None = None

    def __post_init__(self) -> None:
        _check_count("limit of Rate", self.limit)
        seconds = self.per.total_seconds() if isinstance(self.per, timedelta) else self.per
        if not (is_seconds(seconds) and seconds <= MAX_PERIOD):
            raise InvalidMessage(
                f"per of Rate is {self.per!r}. It must be a number of seconds above 0, or a "
                "timedelta, a week at most."
            )
        _check_names("Rate", self.key, self.group)

    @property
    def seconds(self) -> float:
        """The length of the period."""
        return self.per.total_seconds() if isinstance(self.per, timedelta) else float(self.per)


def _check_count(what: str, value: Any) -> None:
    if not (is_int(value) and 1 <= value <= MAX_COUNT):
        raise InvalidMessage(f"{what} is {value!r}. It must be a whole number from 1 to 1,000,000.")


def _check_names(kind: str, key: Any, group: Any) -> None:
    if not (key is None or (isinstance(key, str) and key != "") or callable(key)):
        raise InvalidMessage(
            f"key of {kind} is {key!r}. It must be a text such as 'account:{{account_id}}', or a "
            "function of the task's arguments."
        )
    if group is None:
        return
    is_word = isinstance(group, str) and group.isprintable() and " " not in group
    if not is_word or not 0 < len(group) <= MAX_GROUP:
        raise InvalidMessage(
            f"group of {kind} is {group!r}. It must be a name without spaces, of {MAX_GROUP} "
            "characters at most."
        )


def numbers_of(limit: Concurrency | Rate) -> tuple[float, ...]:
    """What tasks that share it have to agree on."""
    return (limit.limit,) if isinstance(limit, Concurrency) else (limit.limit, limit.seconds)


def name_of(kind: str, group: str, key: str) -> str:
    """The name of a limit."""
    return f"{kind} {group} {key}" if key else f"{kind} {group}"


def group_of(name: str) -> tuple[str, str]:
    """Kind and group of a limit, by its name."""
    kind, _, rest = name.partition(" ")
    return kind, rest.partition(" ")[0]


def words_of(name: str) -> str:
    """What a task waits for, for people: "a slot of account:7"."""
    kind, _, rest = name.partition(" ")
    group, _, key = rest.partition(" ")
    return f"{'a slot' if kind == SLOT else 'the rate'} of {key or group}"
