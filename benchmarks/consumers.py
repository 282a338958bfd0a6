# SPDX-License-Identifier: Apache-2.0
"""Messages of others: the consumers that handle them, and how fast they do.

A backlog is published, the same for all; a consumer's process is started; its own ``Tally`` tells
when the first and the last message were handled, and whether each one was, once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import tally
from benchmarks.broker import QUEUE_ARGUMENTS
from benchmarks.failure import BenchmarkFailed
from benchmarks.measures import NO_DATABASE, Sample
from benchmarks.peers import FEDORA
from benchmarks.systems import SECONDS_TO_STOP, TOP
from benchmarks.watching import watch
from devtools.environment import peer_program
from devtools.process import Process, ServerError, tail
from devtools.steps import run_quietly

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from benchmarks.broker import Broker
    from benchmarks.processes import CpuTimes

#: What a fixed prefetch is set to. carrot-twisted's follows the run time, and gets to 2,000.
PREFETCH = 1000
#: What Fedora's topics are published to. Durable, and there in every virtual host.
TOPICS = "amq.topic"
#: A consumer is given up when it has not handled all in that time.
SECONDS_TO_HANDLE = 300.0
TWISTD = (
    str(Path(sys.executable).with_name("twistd")),
    *("--nodaemon", "--pidfile=", "carrot"),
)


@dataclass(frozen=True, kw_only=True)
class ConsumerSystem:
    """How to start a consumer's process."""

    key: str
    label: str
    command: Sequence[str]
    """``{queue}`` is put in."""
    settings: str | None = None
    """Django settings; None: no Django."""
    prefetch: int = PREFETCH
    """Where it is fixed."""
    prepare: Callable[[Consumer], None] = lambda _consumer: None
    """What it needs beforehand."""


class Consumer:
    """One consumer with a queue of its own.

    Args:
        system: which one.
        measure: which one its samples are of.
        broker: where the queue is.
        queue: its name.
        folder: for its files.
        fill: publishes a backlog into the queue; None: messages of others.
        database: label of the one that has a part in that.
    """

    def __init__(
        self,
        system: ConsumerSystem,
        *,
        measure: str,
        broker: Broker,
        queue: str,
        folder: Path,
        fill: Callable[[int], None] | None = None,
        database: str = NO_DATABASE,
    ) -> None:
        self.queue = queue
        self.broker = broker
        self._system = system
        self._measure = measure
        self._database_label = database
        # Callbacks get their messages as topics, handlers by the queue's name.
        exchange = TOPICS if measure == "consume" else ""
        self._fill = fill or partial(broker.fill, queue, exchange)
        self.configuration = folder / f"{queue}.toml"
        self._tally = folder / f"{queue}.tally"
        self._log = folder / f"{queue}.log"
        self._database = folder / f"{queue}.sqlite3"
        system.prepare(self)

    def measure(self, messages: int, round_number: int) -> Sample:
        """Take one sample.

        Raises:
            BenchmarkFailed: a message was not handled, or more than once, or one is left.
        """
        self.tidy_up()
        self._tally.unlink(missing_ok=True)
        self._fill(messages)
        broker_cpu, begin = self.broker.cpu_seconds(), time.time()
        with self._running(messages) as process:
            times = self._watch(process)
            if broker_cpu is not None:
                broker_cpu = (self.broker.cpu_seconds() or 0.0) - broker_cpu
        # Only now is everything acknowledged: what was not has come back into the queue.
        self.broker.expect(self.queue, 0)
        found = tally.read(self._tally, messages)
        check(found, messages)
        return Sample(
            system=self._system.key,
            database=self._database_label,
            measure=self._measure,
            round_number=round_number,
            tasks=messages,
            seconds=found.end - found.begin,
            cpu=times.between(found.begin, found.end),
            seconds_with_start=found.end - begin,
            cpu_with_start=times.until(found.end),
            broker_cpu=broker_cpu,
        )

    def tidy_up(self) -> None:
        """Leave nothing in the broker."""
        self.broker.delete(self.queue)

    def variables(self, messages: int = 0) -> Mapping[str, str]:
        """The environment of its processes."""
        variables = {
            **os.environ,
            "BENCHMARK_BROKER": self.broker.url,
            "BENCHMARK_DATABASE": f"sqlite://{self._database}",
            "BENCHMARK_QUEUE": self.queue,
            "BENCHMARK_TALLY": str(self._tally),
            "BENCHMARK_MESSAGES": str(messages),
            "BENCHMARK_PREFETCH": str(self._system.prefetch),
            "CARROT_BROKER": self.broker.url,
            "PYTHONPATH": str(TOP),
            "PYTHONUNBUFFERED": "1",
        }
        variables.pop("DJANGO_SETTINGS_MODULE", None)
        if self._system.settings is not None:
            variables["DJANGO_SETTINGS_MODULE"] = self._system.settings
        return variables

    def migrate(self) -> None:
        """Make the tables."""
        command = [sys.executable, "-m", "django", "migrate", "--verbosity=0"]
        run_quietly(command, log=self._log, environment=self.variables())

    def configure(self) -> None:
        """Write the configuration of fedora-messaging."""
        queue = {
            **{"durable": True, "auto_delete": False, "exclusive": False},
            "arguments": QUEUE_ARGUMENTS,
        }
        binding = {"queue": self.queue, "exchange": TOPICS, "routing_keys": [self.queue]}
        parts = {
            "amqp_url": self.broker.url,
            "bindings": [binding],
            "queues": {self.queue: queue},
            "qos": {"prefetch_size": 0, "prefetch_count": PREFETCH},
            # By default it writes two lines for each message.
            "log_config": {"version": 1, "root": {"level": "WARNING"}},
        }
        lines = (f"{key} = {_toml(value)}\n" for key, value in parts.items())
        self.configuration.write_text("".join(lines))

    @contextmanager
    def _running(self, messages: int) -> Iterator[Process]:
        """Have the consumer running inside the block; it must stop cleanly when asked to."""
        command = [
            part.format(queue=self.queue, configuration=self.configuration)
            for part in self._system.command
        ]
        variables = self.variables(messages)
        try:
            process = Process(command, folder=TOP, log=self._log, environment=variables)
        except ServerError as error:
            raise BenchmarkFailed(f"the consumer did not start: {error}") from None
        try:
            yield process
            process.send(signal.SIGTERM)
            status = process.wait(SECONDS_TO_STOP)
        except ServerError as error:
            raise BenchmarkFailed(f"the consumer did not stop: {error}") from None
        finally:
            process.kill()
        if status not in (0, -signal.SIGTERM, 128 + signal.SIGTERM):
            raise BenchmarkFailed(f"the consumer ended with status {status}. {self._log_tail()}")

    def _watch(self, process: Process) -> CpuTimes:
        """Note the consumer's CPU time until it has handled everything."""
        deadline = time.monotonic() + SECONDS_TO_HANDLE

        def ended() -> bool:
            if time.monotonic() > deadline:
                raise BenchmarkFailed(f"not all messages were handled. {self._log_tail()}")
            return self._tally.exists()

        return watch(process, ended, self._log_tail)

    def _log_tail(self) -> str:
        return f"End of its log:\n{tail(self._log)}"


def check(found: tally.Found, messages: int) -> None:
    """Raise unless each message was handled once."""
    if found.missing or found.repeated or found.unknown:
        raise BenchmarkFailed(
            f"of {messages:,} messages {found.missing:,} were not handled; {found.repeated:,} "
            f"calls were repeated, and {found.unknown:,} got what was not published"
        )


def _toml(value: object) -> str:
    """A value in TOML, whose inline tables have another sign than JSON's objects."""
    if isinstance(value, dict):
        pairs = (f"{json.dumps(key)} = {_toml(each)}" for key, each in value.items())
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value)


_STEP = ConsumerSystem(
    key="kombu",
    label="step of Celery's worker",
    command=(
        *(sys.executable, "-m", "celery", "--app=benchmarks.site_kombu.app", "worker"),
        *("--pool=solo", "--without-gossip", "--without-mingle", "--without-heartbeat"),
    ),
    settings="benchmarks.site_kombu.settings",
    # One message at a time, as the original has it.
    prefetch=1,
)
RAW = ConsumerSystem(
    key="raw",
    label="pika, ack only",
    command=(sys.executable, "-m", "benchmarks.raw"),
)
CONSUMERS = {
    ("consume", "carrot"): ConsumerSystem(
        key="carrot",
        label="carrot-twisted",
        command=(
            *TWISTD,
            "--callback=benchmarks.callbacks:carrot",
            *("--queue-name={queue}", f"--exchange={TOPICS}", "--routing-key={queue}"),
        ),
    ),
    ("consume", "fedora"): ConsumerSystem(
        key="fedora",
        label="fedora-messaging",
        command=(
            peer_program(FEDORA.name),
            *("--conf={configuration}", "consume", "--callback=benchmarks.callbacks:fedora"),
        ),
        prepare=Consumer.configure,
    ),
    ("consume", "raw"): RAW,
    ("handle", "carrot"): ConsumerSystem(
        key="carrot",
        label="carrot-twisted",
        command=(*TWISTD, "--settings=benchmarks.site_handlers.settings", "--no-scheduler"),
        settings="benchmarks.site_handlers.settings",
        prepare=Consumer.migrate,
    ),
    ("handle", "kombu"): _STEP,
    ("handle", "kombu-tuned"): replace(
        _STEP, key="kombu-tuned", label="step of Celery's worker, tuned", prefetch=PREFETCH
    ),
}
