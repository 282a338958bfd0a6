# SPDX-License-Identifier: Apache-2.0
"""Does the faults of a schedule, each lane in a thread of its own, and notes when."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pika
from pika.exceptions import AMQPError

from carrot_twisted.virtual_host import VirtualHost
from tests.chaos.schedule import CONSUMED, KINDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.chaos.places import PublisherPlace, ServicePlace
    from tests.chaos.schedule import Fault
    from tests.chaos.stage import Stage

LATENCY = {"latency": 0.2, "jitter": 0.2}
#: The queue that is deleted, and the one that gets poison: that must not be lost with a queue.
VICTIM, POISONED = "default", "other"
#: Seconds that a deletion waits for consumers.
PATIENCE = 10


@dataclass(frozen=True, kw_only=True)
class Done:
    """A fault as it happened; times in seconds since the epoch."""

    fault: Fault
    begin: float
    end: float


class Injector:
    """The author of all trouble.

    Args:
        stage: servers and paths.
        services: those to be killed.
        publishers: those, too.
    """

    def __init__(
        self, stage: Stage, services: Sequence[ServicePlace], publishers: Sequence[PublisherPlace]
    ) -> None:
        self._stage = stage
        self._services = services
        self._publishers = publishers
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self.done: list[Done] = []
        self.now: dict[str, Fault] = {}
        """What happens just now, by lane."""
        self.errors: list[str] = []
        """What this injector itself could not do."""
        self.poison: list[str] = []

    @property
    def busy(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def start(self, faults: Sequence[Fault]) -> None:
        """Begin now."""
        begin = time.monotonic()
        for lane in dict.fromkeys(KINDS.values()):
            mine = [fault for fault in faults if fault.lane == lane]
            thread = threading.Thread(target=self._follow, args=(lane, mine, begin), daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """Do no more; returns when nothing is under way."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _follow(self, lane: str, faults: Sequence[Fault], begin: float) -> None:
        for fault in faults:
            if self._stop.wait(max(0.0, begin + fault.at - time.monotonic())):
                return
            self.now[lane] = fault
            started = time.time()
            try:
                self._perform(fault)
            except Exception as error:
                self.errors.append(f"{fault}: {type(error).__name__}: {error}")
            self.done.append(Done(fault=fault, begin=started, end=time.time()))
            del self.now[lane]

    def _perform(self, fault: Fault) -> None:
        stage, seconds = self._stage, fault.seconds
        match fault.kind:
            case "kill-service":
                self._services[int(fault.target)].kill()
            case "stop-service":
                self._services[int(fault.target)].restart()
            case "freeze-service":
                self._services[int(fault.target)].freeze(seconds)
            case "kill-publisher":
                self._publishers[int(fault.target)].kill()
            case "kill-broker" | "restart-broker":
                stage.broker.kill() if fault.kind == "kill-broker" else stage.broker.stop()
                time.sleep(seconds)
                stage.broker.start()
            case "delete-queue":
                self._delete_queue(when_consumed=fault.target == CONSUMED)
            case "crash-database" | "restart-database":
                stage.database.stop("immediate" if fault.kind == "crash-database" else "fast")
                time.sleep(seconds)
                stage.database.start()
            case "poison":
                self._send_poison(fault.amount)
            case _:
                self._spoil(fault)

    def _spoil(self, fault: Fault) -> None:
        """A fault of the network."""
        paths = self._stage.paths(fault.target)
        faults: dict[str, float | bool] = {}
        match fault.kind:
            case "black-hole":
                faults = {"hold_up": True, "hold_down": True}
            case "one-way":
                faults = {f"hold_{fault.way}": True}
            case "delay":
                faults = dict(LATENCY)
            case "refuse":
                faults = {"refuse": True}
            case "torn-frame":
                faults = {f"cut_after_{fault.way}": fault.amount}
        for path in paths:
            path.suffer(**faults)
            if fault.kind in ("cut", "refuse"):
                path.cut()
        time.sleep(fault.seconds)
        for path in paths:
            if fault.cut:
                path.cut()
            path.suffer()

    def _delete_queue(self, when_consumed: bool) -> None:
        connection = VirtualHost(self._stage.broker.url).blocking_connection
        channel = connection.channel()
        end = time.monotonic() + PATIENCE
        while when_consumed and time.monotonic() < end:
            frame = channel.queue_declare(VICTIM, passive=True)
            if frame.method.consumer_count:
                break
            connection.sleep(0.1)
        channel.queue_delete(VICTIM)
        connection.close()

    def _send_poison(self, number: int) -> None:
        """Send a message that no task can be made of, until the broker confirms it."""
        body = f"poison-{number}"
        properties = [
            pika.BasicProperties(),
            pika.BasicProperties(message_id="not a UUID", headers={"type": "os.system"}),
            pika.BasicProperties(message_id=f"00000000-0000-4000-8000-{number:012}"),
        ][number % 3]
        properties.delivery_mode = 2
        while not self._stop.is_set():
            try:
                connection = VirtualHost(self._stage.broker.url).blocking_connection
                channel = connection.channel()
                channel.confirm_delivery()
                channel.basic_publish("", POISONED, body.encode(), properties, mandatory=True)
                connection.close()
            except (AMQPError, OSError):
                time.sleep(0.5)
            else:
                self.poison.append(body)
                return
