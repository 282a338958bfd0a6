# SPDX-License-Identifier: Apache-2.0
"""What a task asks and tells of its own run, and what services make of a wish to cancel it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID, uuid4

import pytest

import carrot_twisted
from carrot_twisted import execution, running
from carrot_twisted.exceptions import TaskCancelled
from carrot_twisted.execution import Limits
from carrot_twisted.outcomes import Kind
from carrot_twisted.running import CancelRequest, Progress
from carrot_twisted.service.cancelling import Cancelling
from carrot_twisted.task_options import TaskOptions
from tests.unit.test_execution import run_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from carrot_twisted.service.operations import CancelLook

ANN = CancelRequest(by="ann", reason="too slow")


def of_run(**values: Any) -> Any:
    """What the present run is; nothing outside of a task."""
    return SimpleNamespace(**{"cancel": None, "progress": None, **values})


class TestProgress:
    def test_what_was_told_last_counts(self) -> None:
        run = of_run()
        token = running.current.set(run)
        try:
            carrot_twisted.progress(1)
            carrot_twisted.progress(2, 4, "half")
        finally:
            running.current.reset(token)
        assert run.progress == Progress(2, 4, "half")

    @pytest.mark.parametrize(
        "values", [(-1,), ("1",), (None,), (1, -1), (1, float("nan")), (True,)]
    )
    def test_only_numbers_are_told(self, values: tuple[Any, ...]) -> None:
        with pytest.raises(ValueError, match="is a number from 0"):
            running.progress(*values)

    def test_outside_of_a_task_nothing_happens(self) -> None:
        running.progress(1, 2)

    def test_a_row_has_it_whatever_the_text(self) -> None:
        column = Progress(1.5, None, "a\0b" + "x" * 500).column
        assert "a\\\\x00b" in column
        assert len(column) < 300

    @pytest.mark.parametrize(
        ("value", "percent"),
        [
            ({"done": 1, "total": 3, "text": ""}, 33),
            ({"done": 5, "total": 3}, 100),
            ({"done": 5, "total": 0}, None),
            ({"done": 5, "total": "x"}, None),
        ],
    )
    def test_percent(self, value: dict[str, Any], percent: int | None) -> None:
        found = Progress.of(value)
        assert found is not None
        assert found.percent == percent

    @pytest.mark.parametrize("value", [None, [], {"done": "x"}, 5])
    def test_what_others_wrote_into_the_row_is_none(self, value: Any) -> None:
        assert Progress.of(value) is None


class TestIsCancelled:
    def test_outside_of_a_task_nobody_is(self) -> None:
        assert not carrot_twisted.is_cancelled()

    def test_a_task_is_when_somebody_has_asked(self) -> None:
        run = of_run()
        token = running.current.set(run)
        try:
            assert not carrot_twisted.is_cancelled()
            run.cancel = ANN
            assert carrot_twisted.is_cancelled()
        finally:
            running.current.reset(token)


def looks_and_ends() -> None:
    """Ends by itself when it is to."""
    run = running.current.get()
    run.cancel = ANN
    raise TaskCancelled("asked to")


def fails_for_it() -> None:
    running.current.get().cancel = ANN
    raise ValueError("interrupted")


fails_for_it.carrot_options = TaskOptions(max_retries=3)  # type: ignore[attr-defined]


def ends_all_the_same() -> str:
    running.current.get().cancel = ANN
    running.progress(3, 3)
    return "done"


def of_task(function: Callable[..., Any]) -> Any:
    path = f"{__name__}.{function.__name__}"
    return run_of(function, task=path, header=path)


class TestEnd:
    def result_of(self, run: Any) -> Any:
        return execution.execute(run, Limits(result=1000, log=1000))

    def test_who_raises_it_is_cancelled(self) -> None:
        result = self.result_of(of_task(looks_and_ends))
        assert (result.kind, result.exception) == (Kind.CANCELLED, "asked to")
        assert "looks_and_ends" in result.traceback

    def test_who_fails_then_is_not_tried_again(self) -> None:
        assert self.result_of(of_task(fails_for_it)).kind is Kind.CANCELLED

    def test_who_returns_is_completed(self) -> None:
        result = self.result_of(of_task(ends_all_the_same))
        assert (result.kind, result.output) == (Kind.COMPLETED, "done")
        assert result.progress == '{"done": 3, "total": 3, "text": ""}'

    def test_what_has_not_begun_does_not(self) -> None:
        run = of_task(ends_all_the_same)
        run.cancel = ANN
        result = self.result_of(run)
        assert (result.kind, result.exception) == (Kind.CANCELLED, "cancelled by ann: too slow")
        assert run.call is None


class Desk:
    """A writer, a reactor and a dispatcher, in one thread."""

    def __init__(self) -> None:
        self.looks: list[CancelLook] = []
        self.told: list[tuple[UUID, int, CancelRequest]] = []
        desk = cast("Any", self)
        self.cancelling = Cancelling(dispatchers=[desk], writer=desk, worker="me", reactor=desk)

    def submit(self, look: CancelLook) -> None:
        self.looks.append(look)

    def callFromThread(self, function: Any, *args: Any) -> None:  # noqa: N802
        function(*args)

    def cancel(self, key: UUID, token: int, request: CancelRequest) -> bool:
        self.told.append((key, token, request))
        return True


def test_one_question_at_a_time_is_asked_for_all_tasks() -> None:
    desk = Desk()
    desk.cancelling.look()
    desk.cancelling.look()
    (look,) = desk.looks
    assert look.worker == "me"
    wish = (uuid4(), 5, ANN)
    look.answer([wish])
    assert desk.told == [wish]
    desk.cancelling.look()
    assert len(desk.looks) == 2
