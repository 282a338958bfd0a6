# SPDX-License-Identifier: Apache-2.0
"""The object that a project subclasses and names as a queue's ``consumer_class``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.utils.module_loading import import_string

from carrot_twisted.exceptions import CarrotConfigException
from carrot_twisted.models import MessageLog
from carrot_twisted.objects import DefaultMessageSerializer

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Mapping

    from carrot_twisted.execution import FailureCallback, Run
    from carrot_twisted.virtual_host import VirtualHost


class Consumer:
    """One queue's consumer: how to read its messages, and what to do when a task fails.

    The constructor is django-carrot's, so its subclasses work; unlike there, a consumer is no
    thread. One object serves all threads of its queue.

    Args:
        host: the queue's broker.
        queue: its name.
        logger: the logger ``carrot``.
        name: ``<queue>-consumer``.
        durable: as in the queue's settings.
        queue_arguments: as in the queue's settings.
        exchange_arguments: as in the queue's settings.
    """

    serializer: type[DefaultMessageSerializer] = DefaultMessageSerializer

    def __init__(
        self,
        host: VirtualHost,
        queue: str,
        logger: logging.Logger,
        name: str,
        durable: bool = True,
        queue_arguments: Mapping[str, Any] | None = None,
        exchange_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self.host = host
        self.queue = queue
        self.exchange = queue
        self.logger = logger
        self.name = name
        self.durable = durable
        self.queue_arguments = dict(queue_arguments or {})
        self.exchange_arguments = dict(exchange_arguments or {})
        self.failure_callbacks: list[Callable[[MessageLog, BaseException], Any]] = []

    def add_failure_callback(self, cb: Callable[[MessageLog, BaseException], Any]) -> None:
        """Call ``cb(log, exception)`` in the worker thread whenever a task of this queue fails.

        It is called before the failure is written. A callback that deletes the log, for example to
        publish the task anew, leaves nothing to write.
        """
        self.failure_callbacks.append(cb)

    def failure_hook(self) -> FailureCallback | None:
        """What ``execution`` calls when a task fails; None if there is nothing to call."""
        return self._call_failure_callbacks if self.failure_callbacks else None

    def _call_failure_callbacks(self, run: Run, error: BaseException) -> None:
        try:
            log = MessageLog.objects.get(pk=run.uuid)
        except Exception:
            self.logger.exception("The failure callbacks of %s were not called", run.task)
            return
        for callback in self.failure_callbacks:
            name = getattr(callback, "__name__", repr(callback))
            try:
                callback(log, error)
            except BaseException as failure:
                self.logger.error("Failure callback %s failed due to an error: %s", name, failure)
            else:
                self.logger.info("Failure callback %s succeeded", name)


def make_consumer(path: str, **arguments: Any) -> Consumer:
    """An object of the class that ``consumer_class`` names.

    Raises:
        CarrotConfigException: there is no such class, or it is no Consumer.
    """
    try:
        factory = import_string(path)
    except ImportError as error:
        raise CarrotConfigException(f"consumer_class {path!r}: {error}") from error
    if not (isinstance(factory, type) and issubclass(factory, Consumer)):
        raise CarrotConfigException(
            f"consumer_class {path!r} is not a subclass of carrot_twisted.consumer.Consumer"
        )
    return factory(**arguments)
