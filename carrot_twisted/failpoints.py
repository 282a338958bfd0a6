# SPDX-License-Identifier: Apache-2.0
"""Places at which a test can have this process die, raise or stand still.

``CARROT_FAILPOINT`` arms them, for the process that has it in its environment::

    CARROT_FAILPOINT=after_claim_commit:exit            kill -9 of this process, the first time
    CARROT_FAILPOINT=after_claim_commit:exit:3          the third time
    CARROT_FAILPOINT=before_finish_commit:raise:0.1@7   one time in ten; 7 is the seed
    CARROT_FAILPOINT=in_relay_after_take:sleep=2        stand still for 2 seconds, each time

Several, divided by commas, are armed together. ``raise`` raises Django's OperationalError, as of a
database that goes away just there. Without the variable a place costs one look at an empty
dictionary; most are passed once for a batch of tasks.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

from django.db.utils import OperationalError

from carrot_twisted.exceptions import CarrotConfigException

if TYPE_CHECKING:
    from collections.abc import Callable

VARIABLE = "CARROT_FAILPOINT"
#: All places: where the code is then, and what has become lasting by that time.
PLACES = {
    # In any process that publishes.
    "before_insert_commit": "the row is written, in a transaction of the caller's if he has one",
    "after_commit_before_publish": "the row is committed, the publisher does not know it yet",
    "after_publish_before_confirm": "the broker has taken a message, its confirm is not read yet",
    "after_confirm_before_note": "the confirm is read, its row does not say so yet",
    # A message's way through the service.
    "after_delivery_before_claim": "messages have arrived, nothing is asked of the database",
    "before_claim_commit": "the claim is about to be written",
    "after_claim_commit": "the claim is committed, no task has begun",
    "before_admission_commit": "tasks under limits are claimed, or told to wait, not committed",
    "after_admission_commit": "that is committed, none has begun, no message is acknowledged",
    "after_run_before_finish": "a task has ended, its result is in this thread only",
    "before_finish_commit": "the result is about to be written",
    "after_finish_before_ack": "the result is committed, the message not acknowledged",
    "in_flow_step": "the next step of a flow is written, not committed, nor is what it comes of",
    "custody_taken": "the message of a running task has just been acknowledged",
    "dead_letter_before_ack": "the dead-letter queue has the copy, the original is unacknowledged",
    # Message handlers.
    "handled_before_settle": "a handler has ended, which only its thread knows",
    "copy_before_ack": "a retry queue or archive has the copy, the original is unacknowledged",
    "replay_before_ack": "a queue has its archived message again, which is unacknowledged there",
    # Looking after what others left.
    "in_take_over": "a dead worker's row is taken over, not committed",
    "in_reap": "rows of dead workers are put back, not committed",
    "in_relay_after_take": "rows are taken from the outbox, nothing is sent",
    "on_heartbeat": "the lease is renewed, not committed",
    # The scheduler.
    "in_schedule_transaction": "a slot is published and its schedule moved on, not committed",
    "after_schedule_commit": "that is committed",
    # The end.
    "during_stop": "tasks have ended or are released; connections and threads are there",
}

_logger = logging.getLogger(__name__)
_armed: dict[str, Callable[[], None]] = {}


def reached(place: str) -> None:
    """This process has come to one of PLACES: do what is asked for there, if anything is."""
    if _armed and place in _armed:
        _armed[place]()


def arm(text: str) -> None:
    """Arm what a value of the variable says, and nothing else.

    Raises:
        CarrotConfigException: it makes no sense.
    """
    armed = dict(_read(one) for one in text.split(",")) if text else {}
    _armed.clear()
    _armed.update(armed)
    if armed:
        _logger.warning("Failpoints are armed in process %s: %s", os.getpid(), text)


def _read(text: str) -> tuple[str, Callable[[], None]]:
    place, *rest = text.strip().split(":")
    if place not in PLACES:
        raise _mistake(text, f"there is no place {place!r}. Places: {', '.join(PLACES)}")
    if not 1 <= len(rest) <= 2:
        raise _mistake(text, "write place:action or place:action:when")
    action = _action(place, rest[0], text)
    return place, _when(rest[1], action, text) if len(rest) == 2 else action


def _action(place: str, name: str, text: str) -> Callable[[], None]:
    kind, _, value = name.partition("=")
    if name == "exit":
        return _exit
    if name == "raise":
        return partial(_raise, place)
    if kind == "sleep" and _is_number(value):
        return partial(time.sleep, float(value))
    raise _mistake(text, f"there is no action {name!r}. Actions: exit, raise, sleep=SECONDS")


def _is_number(text: str) -> bool:
    """Whether it is one like 12 or 0.5: no sign, no exponent."""
    whole, _, rest = text.partition(".")
    return whole.isdecimal() and (rest or "0").isdecimal()


def _when(when: str, action: Callable[[], None], text: str) -> Callable[[], None]:
    chance, at, seed = when.partition("@")
    if at and _is_number(chance) and 0 < float(chance) <= 1 and seed.isdecimal():
        return _by_chance(float(chance), int(seed), action)
    if when.isdecimal() and int(when) > 0:
        return _nth(int(when), action)
    raise _mistake(text, "its last part is a whole number from 1, or probability@seed")


def _nth(number: int, action: Callable[[], None]) -> Callable[[], None]:
    """The action, at this time only: the first is 1."""
    lock = threading.Lock()
    count = 0

    def count_on() -> None:
        nonlocal count
        with lock:
            count += 1
            due = count == number
        if due:
            action()

    return count_on


def _by_chance(probability: float, seed: int, action: Callable[[], None]) -> Callable[[], None]:
    chances = random.Random(seed)  # noqa: S311 - no secret, and the same in every run

    def perhaps() -> None:
        if chances.random() < probability:
            action()

    return perhaps


def _exit() -> None:
    # Nothing is flushed, closed or told, as if the machine had lost its power.
    os.kill(os.getpid(), signal.SIGKILL)


def _raise(place: str) -> None:
    raise OperationalError(f"failpoint {place}")


def _mistake(text: str, reason: str) -> CarrotConfigException:
    return CarrotConfigException(f"{VARIABLE}: {text.strip()!r} makes no sense: {reason}.")


arm(os.environ.get(VARIABLE, ""))
