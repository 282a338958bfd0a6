# SPDX-License-Identifier: Apache-2.0
"""The Celery application, and the step of its worker that consumes.

The handler runs in the worker's own loop, with one message at a time, whatever pool there is. What
fails is published to a retry queue, or to an archive, and then acknowledged.
"""

from __future__ import annotations

import os
from typing import Any

from celery import Celery, bootsteps
from django.core.signals import request_finished
from kombu.entity import Queue
from kombu.messaging import Consumer, Producer

from benchmarks.broker import QUEUE_ARGUMENTS
from benchmarks.settings import QUEUE
from benchmarks.tally import Tally

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "benchmarks.site_kombu.settings")

PREFETCH = int(os.environ.get("BENCHMARK_PREFETCH", "1"))
RETRIES = "x-retry-count"
MAX_RETRIES = 4
SECONDS = (0.2, 1, 60, 1800)

app = Celery("benchmarks")
app.config_from_object("django.conf:settings", namespace="CELERY")
_tally = Tally.of_environment()


def handler(body: Any) -> None:
    """Count the message."""
    _tally.handled(body["number"])


class Handling:
    """Has the messages of one queue handled."""

    def __init__(self, channel: Any) -> None:
        self._producer = Producer(channel, serializer="json")
        returning = {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": QUEUE}
        work = Queue(QUEUE, queue_arguments=QUEUE_ARGUMENTS)
        self._retry = Queue(f"{QUEUE}.retry", queue_arguments=returning)
        self._archive = Queue(f"{QUEUE}.archived")
        for queue in (self._retry, self._archive):
            queue(channel).declare()
        self.consumer = Consumer(
            channel, [work], callbacks=[self.handle], accept=["json"], prefetch_count=PREFETCH
        )

    def handle(self, body: Any, message: Any) -> None:
        """Call the handler, then settle the message."""
        try:
            handler(body)
        except Exception:
            self._failed(body, message)
        message.ack()
        # As after a request: Django closes connections that are too old or broken.
        request_finished.send(sender="handler")

    def _failed(self, body: Any, message: Any) -> None:
        retries = message.headers.get(RETRIES, 0)
        target, options = self._archive, {}
        if retries < MAX_RETRIES:
            target, options = self._retry, {"expiration": SECONDS[retries]}
        self._producer.publish(
            body,
            routing_key=target.name,
            headers={**message.headers, RETRIES: retries + 1},
            declare=[target],
            **options,
        )


class ConsumerStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Consumes beside Celery's own consumer, over the same connection."""

    requires = ("celery.worker.consumer.connection:Connection",)

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self._consumer: Any = None

    def start(self, parent: Any) -> None:
        """Consume on a channel of its own."""
        self._consumer = Handling(parent.connection.channel()).consumer
        self._consumer.consume()

    def stop(self, parent: Any) -> None:
        """Stop consuming; what is not acknowledged goes back."""
        if self._consumer is not None:
            self._consumer.cancel()
            self._consumer.channel.close()
            self._consumer = None

    shutdown = stop


app.steps["consumer"].add(ConsumerStep)
