# SPDX-License-Identifier: Apache-2.0
"""Lines of a task's loggers end up in its transcript, bounded, and in nobody else's."""

from __future__ import annotations

import logging
import threading
import tracemalloc
from contextlib import contextmanager
from contextvars import copy_context
from typing import TYPE_CHECKING

import pytest

from carrot_twisted import task_logging
from carrot_twisted.task_logging import ListHandler, LoggingTask, Transcript, capture

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMES = ("carrot", "probe", "probe.tasks", "probe.tasks.deep", "elsewhere")


@pytest.fixture(autouse=True)
def _loggers() -> Iterator[None]:
    """Leave the loggers as they were."""
    loggers = [logging.getLogger(name) for name in NAMES]
    before = [(logger, list(logger.handlers), logger.level) for logger in loggers]
    yield
    for logger, handlers, level in before:
        logger.handlers, logger.level, logger.propagate = handlers, level, True


@contextmanager
def running_task() -> Iterator[Transcript]:
    """A task runs; yields its transcript.

    No fixture: pytest-twisted runs those in another context than the test.
    """
    transcript = Transcript(1000)
    token = task_logging.current.set(transcript)
    yield transcript
    task_logging.current.reset(token)


def lines(transcript: Transcript) -> list[str]:
    """Level and text of each line."""
    return [line.partition(" ")[2].rsplit(" ", 1)[-1] for line in transcript.text(1000).split("\n")]


def test_lines_of_carrot_and_of_task_modules_are_captured_from_debug_on() -> None:
    with running_task() as transcript:
        capture({"probe.tasks"})
        for name in ("carrot", "probe.tasks", "probe.tasks.deep"):
            logging.getLogger(name).debug(name)
        for name in ("probe", "elsewhere"):
            logging.getLogger(name).critical("not %s", name)
        assert lines(transcript) == ["carrot", "probe.tasks", "probe.tasks.deep"]


def test_the_format_is_that_of_django_carrot() -> None:
    with running_task() as transcript:
        capture(set())
        logging.getLogger("carrot").warning("a %s", "b")
        line = transcript.text(1000)
        assert line.startswith("MainThread ")
        assert line.endswith(" WARNING:: a b")
        assert line.count("::") == 1


def test_no_line_is_doubled_however_often_and_whatever_is_captured() -> None:
    with running_task() as transcript:
        for _ in range(2):
            capture({"probe", "probe.tasks", "probe.tasks.deep"})
        logging.getLogger("probe.tasks.deep").info("once")
        assert lines(transcript) == ["once"]


def test_a_logger_that_does_not_propagate_is_captured_itself() -> None:
    with running_task() as transcript:
        logging.getLogger("probe.tasks").propagate = False
        capture({"probe", "probe.tasks"})
        logging.getLogger("probe.tasks").info("mine")
        assert lines(transcript) == ["mine"]


def test_a_level_that_the_project_has_set_is_kept() -> None:
    with running_task() as transcript:
        logging.getLogger("probe").setLevel(logging.WARNING)
        capture({"probe"})
        logging.getLogger("probe").info("held back")
        logging.getLogger("probe").warning("kept")
        assert lines(transcript) == ["kept"]


def test_outside_of_a_task_nothing_is_kept_and_other_handlers_work_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    capture({"probe"})
    assert task_logging.current.get() is None
    logging.getLogger("probe").info("to the log file")
    assert caplog.messages == ["to the log file"]


def test_a_copied_context_belongs_to_its_task() -> None:
    """Coroutines, and threads that a task starts with its context."""
    with running_task() as transcript:
        capture({"probe"})
        context = copy_context()
        token = task_logging.current.set(None)
        context.run(logging.getLogger("probe").info, "inside")
        logging.getLogger("probe").info("outside")
        task_logging.current.reset(token)
        assert lines(transcript) == ["inside"]


def test_a_record_that_cannot_be_formatted_does_not_disturb_the_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with running_task() as transcript:
        monkeypatch.setattr(logging, "raiseExceptions", False)
        capture(set())
        logger = logging.getLogger("carrot")
        logger.propagate = False
        logger.info("%d", "not a number")
        logger.info("next")
        assert lines(transcript) == ["next"]


def test_exceptions_are_written_with_their_traceback() -> None:
    with running_task() as transcript:
        capture(set())
        try:
            raise ValueError("no")
        except ValueError:
            logging.getLogger("carrot").exception("failed")
        text = transcript.text(1000)
        assert "ERROR:: failed\nTraceback" in text
        assert text.endswith("ValueError: no")


class TestTranscript:
    def test_without_lines_it_is_empty(self) -> None:
        assert Transcript(100).text(100) == ""

    def test_it_keeps_the_first_and_the_last_lines_and_says_how_many_are_missing(self) -> None:
        transcript = Transcript(20)
        for number in range(1000):
            transcript.add(f"n {number}")
        assert transcript.text(20) == "n 0\nn 1\n… (cut: 996 lines, 5870 characters)\nn 998\nn 999"
        assert transcript.lines == ["n 0", "n 1", "n 998", "n 999"]

    def test_a_flood_does_not_fill_the_memory(self) -> None:
        transcript = Transcript(1000)
        tracemalloc.start()
        try:
            for number in range(20_000):
                transcript.add(f"line {number}")
                transcript.add("x" * 5000)
            used, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert used < 50_000
        assert transcript.lines[0] == "line 0"

    def test_empty_lines_take_room_too(self) -> None:
        transcript = Transcript(10)
        for _ in range(1000):
            transcript.add("")
        assert transcript.text(10).strip("\n") == "… (cut: 990 lines, 990 characters)"

    def test_a_line_that_is_too_long_is_cut_and_its_neighbours_stay(self) -> None:
        transcript = Transcript(200)
        for line in ("before", "y" * 10_000, "after"):
            transcript.add(line)
        first, long, last = transcript.text(200).splitlines()
        assert (first, last) == ("before", "after")
        assert long == "y" * 100 + "… (cut: 9900 of 10000 characters)"

    @pytest.mark.parametrize("limit", [2, 3, 7])
    def test_however_small_it_is_it_holds_what_it_can(self, limit: int) -> None:
        transcript = Transcript(limit)
        for number in range(9):
            transcript.add(str(number))
        text = transcript.text(limit)
        assert len(text) <= limit + 60
        assert text.endswith("8")

    def test_what_fits_is_not_cut(self) -> None:
        transcript = Transcript(12)
        transcript.add("12345")
        transcript.add("12345")
        assert transcript.text(12) == "12345\n12345"

    def test_it_counts_its_lines_lost_ones_too(self) -> None:
        transcript = Transcript(20)
        assert transcript.count == 0
        for number in range(1000):
            transcript.add(f"n {number}")
        assert transcript.count == 1000

    def test_it_is_read_while_others_write(self) -> None:
        transcript = Transcript(2000)
        ended = threading.Event()

        def write() -> None:
            while not ended.is_set():
                transcript.add("x" * 20)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            counts = []
            for _ in range(3000):
                counts.append(transcript.count)
                lines = transcript.text(2000).splitlines()
                assert {len(line) for line in (lines[0], lines[-1])} == {20}
                assert len(transcript.lines) <= 2000 // 21 + 1
        finally:
            ended.set()
            writer.join()
        assert counts[-1] > counts[0]

    def test_its_text_is_fit_for_the_database(self) -> None:
        transcript = Transcript(100)
        transcript.add("a\x00\udc80")
        assert transcript.text(100) == r"a\x00\udc80"


def record(thread_name: str, text: str, level: int = logging.INFO) -> logging.LogRecord:
    made = logging.LogRecord("carrot", level, "file.py", 1, text, (), None)
    made.threadName = thread_name
    return made


class TestListHandler:
    """django-carrot's, for a project's own ways to run a task."""

    @pytest.mark.defect(36)
    def test_it_keeps_the_lines_of_its_thread_and_no_others(self) -> None:
        """django-carrot's compares the beginning of the line: consumer-1 gets consumer-12's."""
        handler = ListHandler("consumer-1", logging.DEBUG)
        for name in ("consumer-1", "consumer-12", "consumer", "MainThread", "consumer-1 "):
            handler.handle(record(name, f"by {name}"))
        assert [line.partition(":: ")[2] for line in handler.output] == ["by consumer-1"]
        assert handler.parse_output().startswith("consumer-1 ")

    def test_it_keeps_no_record_below_its_level(self) -> None:
        handler = ListHandler("t", logging.WARNING)
        logger = logging.getLogger("probe")
        logger.addHandler(handler)
        logger.handle(record("t", "low", logging.INFO))
        logger.handle(record("t", "high", logging.ERROR))
        assert [line.partition(" ERROR:: ")[2] for line in handler.output] == ["high"]

    def test_its_output_is_one_text(self) -> None:
        handler = ListHandler("t", logging.DEBUG)
        assert handler.parse_output() == ""
        for text in ("one", "two"):
            handler.handle(record("t", text))
        assert [line[-3:] for line in handler.parse_output().split("\n")] == ["one", "two"]


class TestLoggingTask:
    def task(self, text: str, fail: bool = False) -> str:
        logging.getLogger("probe").warning("logs %s", text)
        if fail:
            raise ValueError(text)
        return f"returns {text}"

    def test_it_runs_the_function_and_keeps_what_that_logs(self) -> None:
        logger = logging.getLogger("probe")
        task = LoggingTask(self.task, logger, "", "a", fail=False)
        logger.warning("before")
        assert task.run() == "returns a"
        logger.warning("after")
        assert task.get_logs().endswith("WARNING:: logs a")
        assert task.get_logs().count("::") == 1

    def test_lines_of_another_thread_are_not_kept(self) -> None:
        def work() -> None:
            thread = threading.Thread(target=self.task, args=("elsewhere",))
            thread.start()
            thread.join()

        task = LoggingTask(work, logging.getLogger("probe"), "")
        task.run()
        assert task.get_logs() == ""

    def test_after_an_exception_its_handler_is_gone_and_the_lines_are_there(self) -> None:
        logger = logging.getLogger("probe")
        before = list(logger.handlers)
        task = LoggingTask(self.task, logger, "", "b", fail=True)
        with pytest.raises(ValueError, match="b"):
            task.run()
        assert logger.handlers == before
        assert task.get_logs().endswith("logs b")

    def test_it_belongs_to_the_thread_that_is_named(self) -> None:
        task = LoggingTask(self.task, logging.getLogger("probe"), "consumer-1", "c")
        task.run()
        assert task.get_logs() == ""
        thread = threading.Thread(target=task.run, name="consumer-1")
        thread.start()
        thread.join()
        assert task.get_logs().startswith("consumer-1 ")
