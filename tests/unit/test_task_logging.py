# SPDX-License-Identifier: Apache-2.0
"""Lines of a task's loggers end up in its transcript, bounded, and in nobody else's."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from contextvars import copy_context
from typing import TYPE_CHECKING

import pytest

from carrot_twisted import task_logging
from carrot_twisted.task_logging import Transcript, capture

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

    def test_it_says_how_many_lines_are_missing(self) -> None:
        transcript = Transcript(10)
        for _ in range(5):
            transcript.add("12345")
        assert transcript.text(10) == "12345\n12345\n… (cut: 3 more lines)"

    def test_empty_lines_take_room_too(self) -> None:
        transcript = Transcript(10)
        for _ in range(1000):
            transcript.add("")
        assert transcript.text(10).endswith("(cut: 990 more lines)")

    def test_what_fits_is_not_cut(self) -> None:
        transcript = Transcript(12)
        transcript.add("12345")
        transcript.add("12345")
        assert transcript.text(12) == "12345\n12345"

    def test_its_text_is_fit_for_the_database(self) -> None:
        transcript = Transcript(100)
        transcript.add("a\x00\udc80")
        assert transcript.text(100) == r"a\x00\udc80"
