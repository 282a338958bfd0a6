# SPDX-License-Identifier: Apache-2.0
"""Consumers as projects write them, for the tests of their hooks."""

from __future__ import annotations

import json
import logging
import os
import time
import uuid
from typing import TYPE_CHECKING, Any

from django.db import transaction

from carrot_twisted.consumer import Consumer
from carrot_twisted.models import MessageLog
from carrot_twisted.objects import DefaultMessageSerializer
from carrot_twisted.utilities import publish_message
from tests.project import tasks

if TYPE_CHECKING:
    from collections.abc import Callable

    import pika

logger = logging.getLogger("carrot")


# The recipe of django-carrot's release notes, word for word but for names of modules.


def failure_callback(log, exception):  # type: ignore[no-untyped-def]
    if log.task == "tests.project.consumers.retry_test":
        logger.critical(log.__dict__)
        attempt = log.positionals[0] + 1
        if attempt <= 5:
            log.delete()
            publish_message("tests.project.consumers.retry_test", attempt)


class CustomConsumer(Consumer):
    def __init__(  # type: ignore[no-untyped-def]
        self,
        host,
        queue,
        logger,
        name,
        durable=True,
        queue_arguments=None,
        exchange_arguments=None,
    ) -> None:
        super(CustomConsumer, self).__init__(  # noqa: UP008
            host, queue, logger, name, durable, queue_arguments, exchange_arguments
        )
        self.add_failure_callback(failure_callback)


def retry_test(attempt):  # type: ignore[no-untyped-def]
    logger.info("ATTEMPT NUMBER: %i" % attempt)  # noqa: G002, UP031
    tasks.ledger(f"attempt {attempt}")
    do_stuff()  # type: ignore[name-defined]  # noqa: F821


# Messages that no Django code has published.

#: Rows of foreign messages get their ids from the messages'.
ORDERS = uuid.uuid5(uuid.NAMESPACE_URL, "https://shop.example/orders")


def order_paid(number: int, pause: float = 0.0) -> str:
    """What a foreign message asks for."""
    tasks.effect(f"order {number}", pause)
    return f"order {number} is paid"


class OrderSerializer(DefaultMessageSerializer):
    """Reads ``{"event": "paid", "order": {...}}``."""

    @classmethod
    def get_task(cls, properties: pika.BasicProperties, body: bytes) -> Callable[..., Any]:
        events = {"paid": order_paid}
        return events[json.loads(body)["event"]]

    @classmethod
    def serialize_arguments(cls, body: str) -> tuple[list[Any], dict[str, Any]]:
        return [], json.loads(body)["order"]


class Orders(Consumer):
    """Makes a row for each foreign message, and runs it."""

    serializer = OrderSerializer

    def get_message_log(self, properties: pika.BasicProperties, body: bytes) -> MessageLog | None:
        if properties.app_id != "shop":
            return super().get_message_log(properties, body)
        log, _ = MessageLog.objects.get_or_create(
            pk=uuid.uuid5(ORDERS, properties.correlation_id),
            defaults={"task": "tests.project.consumers.order_paid", "queue": self.queue},
        )
        return log

    def get_task_type(self, properties: Any, body: bytes) -> str:
        return f"the order event {properties.get('x-event', 'of old')}"


class Guard(Consumer):
    """Does something else with some messages, by their header ``x-wish``."""

    def on_message(
        self, channel: Any, method_frame: Any, properties: pika.BasicProperties, body: bytes
    ) -> None:
        wish = (properties.headers or {}).get("x-wish")
        if wish == "raise":
            raise RuntimeError("on_message is broken")
        if wish == "leave":
            raise SystemExit(3)
        if wish == "swallow":
            return
        if wish == "ack":
            channel.basic_ack(method_frame.delivery_tag)
            return
        if wish == "reject" and not method_frame.redelivered:
            channel.basic_reject(method_frame.delivery_tag, requeue=True)
            return
        if wish == "atomic":
            with transaction.atomic():
                MessageLog.objects.filter(pk=properties.message_id).update(priority=1)
                super().on_message(channel, method_frame, properties, body)
            return
        if wish == "hang":
            tasks.ledger("hangs")
            time.sleep(600)
        if wish == "fail":
            log = self.get_message_log(properties, body)
            assert log is not None
            self.fail(log, "refused by the guard")
            return
        super().on_message(channel, method_frame, properties, body)

    def get_task_type(self, properties: Any, body: bytes) -> str:
        # As written for django-carrot 1.5.0, which passed the headers.
        return str(properties["type"])

    def fail(self, log: MessageLog, err: str | BaseException) -> None:
        tasks.ledger(f"fail({log.task}, {err})")
        if str(err) == "break the hook":
            raise ValueError("fail is broken, too")
        super().fail(log, err)


class Slow(Consumer):
    """Sees every message, and changes nothing."""

    def on_message(
        self, channel: Any, method_frame: Any, properties: pika.BasicProperties, body: bytes
    ) -> None:
        if "CARROT_TEST_DIE" in os.environ and method_frame.redelivered is False:
            tasks.ledger("dies")
            os.kill(os.getpid(), 9)
        super().on_message(channel, method_frame, properties, body)
