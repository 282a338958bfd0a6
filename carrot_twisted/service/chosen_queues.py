# SPDX-License-Identifier: Apache-2.0
"""Which queues a service consumes from, and with which consumer objects."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from carrot_twisted import handlers, task_logging
from carrot_twisted.consumer import make_consumer
from carrot_twisted.exceptions import CarrotConfigException
from carrot_twisted.handlers import HandlerQueue

if TYPE_CHECKING:
    from carrot_twisted.conf import CarrotSettings, QueueSettings
    from carrot_twisted.consumer import Consumer
    from carrot_twisted.service.engine_options import ServiceOptions


def chosen_queues(settings: CarrotSettings, options: ServiceOptions) -> list[QueueSettings]:
    """The queues that this service consumes from, those of message handlers last.

    Raises:
        CarrotConfigException: an unknown queue was asked for, or none is left.
    """
    handled = {queue.name: queue for queue in handlers.queues(settings)}
    if options.queues:
        names = sorted(dict.fromkeys(options.queues), key=handled.__contains__)
        return [handled.get(name) or settings.queue(name) for name in names]
    chosen = [*(q for q in settings.queues.values() if q.consumable), *handled.values()]
    if not chosen:
        raise CarrotConfigException(
            "No queue of CARROT['queues'] is consumable: set 'consumable': True for one, or name "
            "one with --queue."
        )
    return chosen


def consumer_of(
    queue: QueueSettings, settings: CarrotSettings, options: ServiceOptions
) -> Consumer:
    """The object that consumes from one of them."""
    named = None if isinstance(queue, HandlerQueue) else options.consumer_class
    consumer = make_consumer(
        named or queue.consumer_class,
        host=queue.host,
        queue=queue.name,
        logger=options.logger or logging.getLogger(task_logging.LOGGER),
        name=options.consumer_name or f"{queue.name}-consumer",
        durable=queue.durable,
        queue_arguments=queue.queue_arguments,
        exchange_arguments=queue.exchange_arguments,
    )
    if not queue.verifies:
        consumer.barred = [one.name for one in settings.queues.values() if one.verifies]
    return consumer
