# SPDX-License-Identifier: Apache-2.0
"""``async def`` tasks in an event loop: Deferreds, limits, places, threads of their own."""

from __future__ import annotations

import asyncio
import logging
import threading
from contextvars import ContextVar
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from asgiref.sync import sync_to_async
from twisted.internet.defer import CancelledError, Deferred, fail, succeed

from carrot_twisted import execution, running, signals, task_logging
from carrot_twisted.coroutine_call import CoroutineCall
from carrot_twisted.exceptions import TimeLimitExceeded
from carrot_twisted.interruption import Abandoned
from carrot_twisted.outcomes import Kind, Result
from carrot_twisted.own_thread import OwnThread, TaskThreads
from carrot_twisted.service.bridge import driven
from carrot_twisted.service.coroutines import Coroutines
from carrot_twisted.task_logging import Transcript
from tests.unit.test_execution import run_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from carrot_twisted.interruption import Call


class OtherThread:
    """A reactor of which there is nothing but its thread: a new one each time."""

    def callFromThread(  # noqa: N802
        self, function: Callable[..., Any], *args: Any
    ) -> None:
        thread = threading.Thread(target=function, args=args)
        thread.start()
        thread.join()


def drive(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(driven(coroutine, OtherThread()), 30))


class TestDeferreds:
    def test_they_are_awaited_like_the_futures_of_asyncio(self) -> None:
        late: Deferred[int] = Deferred()

        async def main() -> list[Any]:
            loop = asyncio.get_running_loop()
            loop.call_later(0.01, OtherThread().callFromThread, late.callback, 2)
            found: list[Any] = [await succeed(1), await late, await late]
            await asyncio.sleep(0)
            for failing in (fail(ValueError("at once")), Deferred()):
                if not failing.called:
                    loop.call_soon(failing.errback, KeyError("later"))
                with pytest.raises((ValueError, KeyError)) as raised:
                    await failing
                found.append(raised.value.args[0])
            return found

        assert drive(main()) == [1, 2, 2, "at once", "later"]

    def test_one_is_cancelled_with_the_coroutine_that_awaits_it(self) -> None:
        cancelled: list[Deferred[None]] = []
        waiting: Deferred[None] = Deferred(cancelled.append)

        async def main() -> str:
            task = asyncio.ensure_future(driven(_await(waiting), OtherThread()))
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return "went on"

        assert drive(main()) == "went on"
        assert cancelled == [waiting]

    def test_who_cancels_a_deferred_meets_twisteds_own_error(self) -> None:
        waiting: Deferred[None] = Deferred()

        async def main() -> None:
            asyncio.get_running_loop().call_soon(waiting.cancel)
            await waiting

        with pytest.raises(CancelledError):
            drive(main())


async def _await(awaitable: Any) -> Any:
    return await awaitable


class Calls:
    """A keeper that only knows which calls are under way."""

    def __init__(self) -> None:
        self.now: list[Call] = []

    def begin(self, call: Call) -> None:
        self.now.append(call)

    def end(self, call: Call) -> None:
        self.now.remove(call)


class TestLimits:
    def call(self, task: Callable[[], Any], *, abandon: bool = False) -> Any:
        """Call a task whose time is over as soon as it waits."""
        calls = Calls()

        async def main() -> Any:
            call = CoroutineCall(None, 1.5, Transcript(100), calls)
            asyncio.get_running_loop().call_soon(call.interrupt)
            if abandon:
                asyncio.get_running_loop().call_later(0.02, call.abandon)
            try:
                return await call.call(task, (), {})
            finally:
                assert calls.now == []

        return drive(main())

    def test_a_coroutine_is_cancelled_where_it_waits(self) -> None:
        async def task() -> None:
            await asyncio.sleep(30)

        with pytest.raises(TimeLimitExceeded, match=r"time limit of 1\.5 s exceeded"):
            self.call(task)

    def test_what_it_returns_all_the_same_counts(self) -> None:
        async def task() -> str:
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                await asyncio.sleep(0.01)
                return "tidied up"
            return "never"

        assert self.call(task) == "tidied up"

    def test_one_that_was_given_up_has_no_say(self) -> None:
        async def task() -> str:
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                await asyncio.sleep(0.1)
            return "late"

        with pytest.raises(Abandoned):
            self.call(task, abandon=True)

    def test_its_own_cancellation_is_its_own(self) -> None:
        async def task() -> None:
            raise asyncio.CancelledError("mine")

        with pytest.raises(asyncio.CancelledError, match="mine"):
            self.call(task)

    def test_only_its_own_steps_are_interrupted(self) -> None:
        """It does not hear of its cancelling: the loop turns no more."""
        interrupted: list[str] = []

        async def main() -> None:
            call = CoroutineCall(None, 1.5, Transcript(100), Calls())

            ready = threading.Event()

            async def never_awaits() -> None:
                try:
                    ready.set()
                    while True:
                        pass
                except TimeLimitExceeded:
                    interrupted.append("task")
                    raise

            def interrupt_twice() -> None:
                ready.wait()
                call.interrupt()
                call.interrupt()

            threading.Thread(target=interrupt_twice).start()

            async def neighbour() -> None:
                await asyncio.sleep(0)
                interrupted.append("neighbour was not")

            other = asyncio.ensure_future(neighbour())
            with pytest.raises(TimeLimitExceeded):
                await call.call(never_awaits, (), {})
            call._target.throw(TimeLimitExceeded)
            await other

        asyncio.run(main())
        assert sorted(interrupted) == ["neighbour was not", "task"]


class Loop:
    """An event loop that is there already."""

    def call(self, function: Callable[..., Any], *args: Any) -> None:
        asyncio.get_running_loop().call_soon(function, *args)


class TestPlaces:
    def test_so_many_run_at_once_and_who_is_given_up_leaves_its_place(self) -> None:
        asyncio.run(self._places())

    async def _places(self) -> None:
        begun: list[int] = []
        gate = asyncio.Event()

        async def work(job: Any) -> None:
            begun.append(job.run)
            await gate.wait()

        coroutines = Coroutines[Any]("mail", 2, work, cast("Any", Loop()))
        for n in range(5):
            coroutines.put(SimpleNamespace(run=n))
        await asyncio.sleep(0.01)
        assert begun == [0, 1]
        assert [slot.name for slot in coroutines.slots] == ["mail-async-1", "mail-async-2"]
        assert coroutines.give_up(1) == "mail-async-2"
        assert coroutines.give_up(7) == ""
        await asyncio.sleep(0.01)
        assert begun == [0, 1, 2]
        last = coroutines.recall()
        assert [job.run for job in last] == [3, 4]
        coroutines.put(last[0])
        gate.set()
        await asyncio.sleep(0.01)
        assert (begun, coroutines.slots) == ([0, 1, 2, 3], [])

    def test_what_a_blocked_loop_was_asked_for_begins_in_the_next_one(self) -> None:
        asked: list[Callable[[], None]] = []
        begun: list[int] = []

        async def work(job: Any) -> None:
            begun.append(job.run)

        async def next_loop() -> None:
            asked.pop()()

        blocked = SimpleNamespace(call=asked.append)
        coroutines = Coroutines[Any]("mail", 2, work, cast("Any", blocked))
        coroutines.put(SimpleNamespace(run=1))
        # Nobody answers. Another queue's coroutine is what blocks it.
        asked.clear()
        coroutines.look_again()
        asyncio.run(next_loop())
        assert begun == [1]
        coroutines.look_again()
        assert asked == [], "nothing waits, so no loop is asked"


class TestThreads:
    def test_a_task_has_one_from_its_first_call_to_its_end(self) -> None:
        cleaned: list[str] = []
        threads = TaskThreads(lambda: cleaned.append(threading.current_thread().name))

        async def task() -> set[str]:
            own = OwnThread(threads)
            own.enter()
            seen = {await where() for _ in range(3)}
            clean = own.end()
            assert clean is not None
            await asyncio.wrap_future(clean)
            with pytest.raises(RuntimeError, match="has ended"):
                await where()
            return seen

        async def main() -> list[set[str]]:
            both = await asyncio.gather(task(), task())
            return [*both, await task()]

        first, second, third = asyncio.run(main())
        assert first | second == {"carrot-async-1", "carrot-async-2"}
        assert len(first) == len(second) == 1
        # The next one takes a thread that is there.
        assert third < first | second
        assert len(cleaned) == 3
        threads.stop()

    def test_who_has_no_synchronous_code_takes_none(self) -> None:
        assert OwnThread(TaskThreads(lambda: None)).end() is None


async def logs_and_returns(value: str) -> str:
    logging.getLogger("carrot").warning("from %s in %s", value, span.get())
    return value


#: What a receiver of task_started may set for the task, as tracing does.
span: ContextVar[str] = ContextVar("span", default="none")


async def fails() -> None:
    await asyncio.sleep(0)
    raise ValueError("on purpose")


gate = threading.Event()


async def leaves_a_call_behind() -> None:
    call = asyncio.ensure_future(sync_to_async(gate.wait)(30))
    await asyncio.sleep(0.01)
    assert not call.done()
    raise ValueError("on purpose")


class TestExecution:
    """What hooks and receivers of signals do there may block: it is not done in the loop."""

    @pytest.fixture
    def told(self) -> Iterator[list[tuple[str, str]]]:
        """What was called, and in which thread."""
        found: list[tuple[str, str]] = []

        def started(**_: Any) -> None:
            found.append(("started", threading.current_thread().name))
            span.set("a span")

        def finished(result: Result, **_: Any) -> None:
            found.append((result.kind.value, threading.current_thread().name))

        signals.task_started.connect(started)
        signals.task_finished.connect(finished)
        yield found
        signals.task_started.disconnect(started)
        signals.task_finished.disconnect(finished)

    def result_of(
        self,
        function: Callable[..., Any],
        *args: Any,
        on_failure: execution.FailureCallback | None = None,
        **changes: Any,
    ) -> Result:
        path = f"{__name__}.{function.__name__}"
        run = run_of(function, *args, **{"task": path, "header": path, **changes})
        own = OwnThread(TaskThreads(lambda: None))

        async def main() -> Any:
            return await execution.execute_coroutine(
                run, execution.Limits(result=1000, log=1000), own, on_failure
            )

        result = drive(main())
        assert run.call is None
        assert isinstance(result, Result)
        return result

    def test_receivers_are_called_in_the_tasks_own_thread(
        self, told: list[tuple[str, str]]
    ) -> None:
        task_logging.capture(set())
        result = self.result_of(logs_and_returns, "x")
        assert (result.kind, result.output) == (Kind.COMPLETED, "x")
        assert (result.log or "").endswith(":: from x in a span")
        assert told == [("started", "carrot-async-1"), ("COMPLETED", "carrot-async-1")]

    def test_so_are_the_failure_hooks(self) -> None:
        called: list[tuple[str, str]] = []

        def hook(run: Any, error: BaseException) -> None:
            assert running.current.get() is run
            called.append((str(error), threading.current_thread().name))

        result = self.result_of(fails, on_failure=hook)
        assert (result.kind, result.exception) == (Kind.FAILED, "on purpose")
        assert "in fails" in (result.traceback or "")
        assert called == [("on purpose", "carrot-async-1")]

    def test_synchronous_code_that_goes_on_holds_up_nothing_that_is_told(
        self, told: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(execution, "LAST_CALL", 0.05)
        gate.clear()
        hooks: list[str] = []

        def hook(*_: Any) -> None:
            assert not gate.is_set()
            hooks.append(threading.current_thread().name)

        try:
            assert self.result_of(leaves_a_call_behind, on_failure=hook).kind is Kind.FAILED
        finally:
            gate.set()
        (_, stuck), (kind, other) = told
        assert (kind, hooks) == ("FAILED", [other])
        assert other != stuck

    def test_a_message_of_another_task_is_its_failure(self) -> None:
        result = self.result_of(fails, header="os.getcwd")
        assert "names task 'os.getcwd'" in (result.exception or "")


@sync_to_async
def where() -> str:
    return threading.current_thread().name
