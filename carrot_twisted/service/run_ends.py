# SPDX-License-Identifier: Apache-2.0
"""What has come of a queue's runs, for the service's log and its statistics; rows have the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from txaio.tx import make_logger

from carrot_twisted import outcomes
from carrot_twisted.outcomes import Kind

if TYPE_CHECKING:
    from carrot_twisted.outcomes import Result
    from carrot_twisted.service.job import Job
    from carrot_twisted.service.log_writer import LogWriter
    from carrot_twisted.service.tally import Tally

_log = make_logger()


class RunEnds:
    """Tells and counts them. In the reactor.

    Args:
        queue: its name.
        tally: counts what comes to its end.
        writer: knows by how much the database's clock differs.
    """

    def __init__(self, queue: str, tally: Tally, writer: LogWriter) -> None:
        self._queue = queue
        self._tally = tally
        self._writer = writer

    def tell(self, job: Job, result: Result) -> None:
        """Say in the service's log what did not go well."""
        if result.kind is Kind.CANCELLED and job.run is not None:
            _log.info(
                "Task {task} ({uuid}) has ended: {why}",
                task=outcomes.one_line(job.run.task, 200),
                uuid=job.uuid,
                why=first_line(result.exception or ""),
            )
        elif result.exception is not None and result.kind is not Kind.RELEASED:
            text = "Task {task} ({uuid}) failed: {error}"
            if result.kind is Kind.RETRY:
                text = "Task {task} ({uuid}) is tried again in {delay:g} s: {error}"
            task = outcomes.one_line(job.run.task, 200) if job.run else "?"
            _log.warn(
                text,
                task=task,
                uuid=job.uuid,
                error=first_line(result.exception),
                delay=result.delay,
                queue=self._queue,
                attempt=job.run.attempt if job.run else None,
            )

    def turn_minute(self) -> None:
        """Before a batch of ends is counted."""
        self._tally.turn_minute()

    def count(self, job: Job, result: Result) -> None:
        """A run has come to its end for good."""
        assert job.run is not None
        if result.kind is Kind.CANCELLED:
            # Neither a success nor a failure, and its time says nothing of the task.
            return
        self._tally.count(
            self._queue,
            job.run.task,
            result.kind is Kind.COMPLETED,
            result.started + self._writer.clock_offset - job.run.published,
            result.ended - result.started,
        )


def first_line(text: str) -> str:
    """Of an exception, for the log."""
    return outcomes.one_line(text.partition("\n")[0], 200)
