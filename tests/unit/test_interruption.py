# SPDX-License-Identifier: Apache-2.0
"""An exception from another thread hits the task and nothing else."""

from __future__ import annotations

import asyncio
import gc
import operator
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import pytest

from carrot_twisted import interruption
from carrot_twisted.exceptions import TimeLimitExceeded
from carrot_twisted.interruption import Abandoned, Call, Interruptible, TimedCall
from carrot_twisted.task_logging import Transcript

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TEXT = "time limit of 0.001 s exceeded"


class Calls:
    """A keeper that only knows which calls are under way."""

    def __init__(self) -> None:
        self.now: set[Call] = set()

    def begin(self, call: Call) -> None:
        self.now.add(call)

    def end(self, call: Call) -> None:
        self.now.discard(call)

    def make(self, seconds: float = 0.001) -> TimedCall:
        return TimedCall(cast("Any", None), seconds, Transcript(100), self)


class Outcome:
    """What a call in a thread of its own has come to."""

    def __init__(self, task: Callable[..., Any], *args: Any) -> None:
        self.calls = Calls()
        self.value: Any = None
        self.error: BaseException | None = None
        self._begun: threading.Event = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(task, args), daemon=True)
        self._thread.start()
        assert self._begun.wait(30)

    def _run(self, task: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.call = self.calls.make()

        def begun(*args: Any) -> Any:
            self._begun.set()
            return task(*args)

        try:
            self.value = self.call.call(begun, args, {})
        except BaseException as error:
            self.error = error

    def ended(self) -> Outcome:
        self._thread.join(30)
        assert not self._thread.is_alive()
        return self


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads take turns at every opportunity, and no collector runs others' callbacks in them."""
    before = sys.getswitchinterval()
    gc.disable()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)
    gc.enable()


def spin(until: Callable[[], object] = lambda: False) -> None:
    while not until():
        pass


@pytest.mark.usefixtures("hasty")
def test_it_hits_no_code_but_the_tasks_however_late_or_often_it_comes() -> None:
    """Thousands of tasks end at their limit, while others raise without any pause."""
    calls = Calls()
    counts = {"value": 0, "limit": 0}
    hit: list[BaseException] = []
    running = 3
    each = 1500

    def task(number: int, end: float) -> int:
        while time.perf_counter() < end:
            pass
        return number

    def worker() -> None:
        nonlocal running
        try:
            for number in range(each):
                call = calls.make()
                begun = time.perf_counter()
                try:
                    # The raises begin while it starts, runs or ends, as it happens.
                    value = call.call(task, (number, begun + 0.000_1 * (number % 3)), {})
                    assert value == number
                    counts["value"] += 1
                except TimeLimitExceeded:
                    counts["limit"] += 1
                # The neighbour: nothing may appear in here.
                sum(range(100))
        except BaseException as error:
            hit.append(error)
        finally:
            running -= 1

    threads = [threading.Thread(target=worker, daemon=True) for _ in range(running)]
    for thread in threads:
        thread.start()
    while running:
        for call in list(calls.now):
            if (id(call) >> 4) % 2:
                call.interrupt()
    for thread in threads:
        thread.join(30)
    assert hit == []
    assert sum(counts.values()) == 3 * each
    # How many of each is the machine's affair.
    assert min(counts.values()) > 0, counts


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("hits", [0, 1, 2])
def test_a_call_whose_closing_is_hit_is_closed_all_the_same(
    hits: int, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two hits can come while it closes: one that was pending, and one raised before it was met."""
    calls = Calls()
    call = calls.make()
    left = iter(range(hits))
    close = Interruptible.close

    def hit_or_close(target: Interruptible) -> None:
        if next(left, None) is not None:
            raise TimeLimitExceeded(TEXT)
        close(target)

    monkeypatch.setattr(Interruptible, "close", hit_or_close)
    expected = TimeLimitExceeded if hits else ZeroDivisionError if fails else type(None)
    error: BaseException | None = None
    try:
        call.call(divmod, (7, 0 if fails else 2), {})
    except BaseException as raised:
        error = raised
    assert isinstance(error, expected)
    assert not call._thread.is_open
    assert calls.now == set()
    assert not call.abandon(), "its end is told"


def test_a_call_does_not_end_while_another_thread_is_about_to_raise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked, waits, order = threading.Event(), threading.Event(), []

    class Slow(Interruptible):
        """Between the look and the raise there is time for everything."""

        @property
        def is_open(self) -> bool:
            looked.set()
            assert waits.wait(30)
            return True

        @is_open.setter
        def is_open(self, value: bool) -> None:
            pass

    monkeypatch.setattr(interruption, "_set_async_exc", lambda *_: order.append("raised"))
    monkeypatch.setattr(interruption, "_clear_async_exc", lambda: order.append("cleared"))
    monkeypatch.setattr(time, "sleep", lambda _: waits.set())
    target = Slow()
    thrower = threading.Thread(target=target.throw, args=(TimeLimitExceeded,), daemon=True)
    thrower.start()
    assert looked.wait(30)
    target.close()
    thrower.join(30)
    assert order == ["raised", "cleared"]


def test_what_the_task_returns_in_time_is_returned() -> None:
    calls = Calls()
    assert calls.make().call(divmod, (7, 2), {}) == (3, 1)
    assert calls.now == set()


def test_what_the_task_raises_is_raised() -> None:
    calls = Calls()
    with pytest.raises(ZeroDivisionError):
        calls.make().call(divmod, (7, 0), {})
    assert calls.now == set()


def test_after_the_end_nothing_is_raised() -> None:
    call = Calls().make()
    call.call(int, (), {})
    call.interrupt()
    spin(iter([False, False, True]).__next__)


def test_except_exception_does_not_swallow_it() -> None:
    def task() -> None:
        while True:
            with suppress(Exception):
                spin()

    outcome = Outcome(task)
    outcome.call.interrupt()
    assert str(outcome.ended().error) == TEXT
    assert isinstance(outcome.error, TimeLimitExceeded)


def test_while_the_task_tidies_up_nothing_is_raised_again() -> None:
    tidying, done = threading.Event(), threading.Event()

    def task() -> str:
        try:
            spin()
        except TimeLimitExceeded as error:
            tidying.set()
            spin(done.is_set)
            return f"tidy: {error}"
        return "never"

    outcome = Outcome(task)
    outcome.call.interrupt()
    assert tidying.wait(30)
    for _ in range(1000):
        outcome.call.interrupt()
    done.set()
    assert outcome.ended().value == f"tidy: {TEXT}"


def test_what_was_swallowed_is_raised_again() -> None:
    swallowed = threading.Event()

    def task() -> None:
        with suppress(BaseException):
            spin()
        swallowed.set()
        spin()

    outcome = Outcome(task)
    outcome.call.interrupt()
    assert swallowed.wait(30)
    outcome.call.interrupt()
    assert isinstance(outcome.ended().error, TimeLimitExceeded)


def test_a_coroutine_is_cancelled_and_tells_where_it_was() -> None:
    waiting = threading.Event()

    async def inner() -> None:
        waiting.set()
        await asyncio.sleep(3600)

    outcome = Outcome(inner)
    assert waiting.wait(30)
    outcome.call.interrupt()
    assert isinstance(outcome.ended().error, TimeLimitExceeded)
    assert outcome.error is not None
    names = []
    trace = outcome.error.__traceback__
    while trace is not None:
        names.append(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    assert "inner" in names


def test_a_coroutine_that_is_cancelled_by_others_is_just_that() -> None:
    async def task() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        Calls().make().call(task, (), {})


def test_a_coroutine_that_never_awaits_is_hit_in_its_own_thread() -> None:
    async def task() -> None:
        spin()

    outcome = Outcome(task)
    while outcome.call._coroutine is None:
        time.sleep(0)
    for _ in range(2):
        # Its loop gets no chance to cancel it.
        outcome.call.interrupt()
    assert isinstance(outcome.ended().error, TimeLimitExceeded)


def test_the_end_is_told_by_one_of_the_two() -> None:
    done = threading.Event()
    late = Outcome(spin, done.is_set)
    assert late.call.abandon()
    done.set()
    assert isinstance(late.ended().error, Abandoned)

    early = Outcome(int).ended()
    assert early.error is None
    assert not early.call.abandon()


def test_threads_that_are_traced_go_on_while_it_is_pending_and_afterwards() -> None:
    """As under a debugger, a profiler, or what measures coverage."""

    def traced_thread_goes_on() -> bool:
        done = threading.Event()

        def run() -> None:
            sys.settrace(lambda *_: None)
            done.set()

        threading.Thread(target=run, daemon=True).start()
        return done.wait(30)

    in_c, gate = threading.Lock(), threading.Lock()
    in_c.acquire()
    gate.acquire()
    # All of it is C code, so that it cannot be hit before it waits.
    call: Any = operator.call
    outcome = Outcome(list, map(call, (in_c.release, gate.acquire)))
    in_c.acquire()
    outcome.call.interrupt()
    assert traced_thread_goes_on()
    gate.release()
    assert isinstance(outcome.ended().error, TimeLimitExceeded)
    assert traced_thread_goes_on()


def test_it_tells_where_a_thread_is() -> None:
    done = threading.Event()
    outcome = Outcome(spin, done.wait)
    stack = outcome.call.stack()
    done.set()
    outcome.ended()
    names = [frame.name for frame in stack]
    assert names[:2] == ["begun", "spin"]


def test_it_tells_where_a_coroutine_waits() -> None:
    waiting = threading.Event()

    async def inner() -> None:
        waiting.set()
        await asyncio.sleep(3600)

    async def outer() -> None:
        await inner()

    outcome = Outcome(outer)
    assert waiting.wait(30)
    while "sleep" not in [frame.name for frame in outcome.call.stack()]:
        time.sleep(0)
    assert [frame.name for frame in outcome.call.stack()][:3] == ["outer", "inner", "sleep"]
    outcome.call.interrupt()
    outcome.ended()
