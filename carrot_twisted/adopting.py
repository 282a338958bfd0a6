# SPDX-License-Identifier: Apache-2.0
"""Runs what processes with django-carrot still publish, while a project moves house.

Name it as the ``consumer_class`` of a queue, or as the base of the queue's own Consumer::

    {"name": "default", "consumer_class": "carrot_twisted.adopting.AdoptingConsumer"}

An old publisher writes a row into django-carrot's table and sends a message. The message alone is
no order to run anything: its old row must be there, committed and unfinished. Then it gets a row
of ours with the same id, and runs like any other; the old row is marked as moved. Take this class
out when no old publisher is left: it searches the old table for each of its messages, and that has
no index on the message id.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from django.db import router, transaction
from django.db.models.functions import Now

from carrot_twisted import old_rows, wire
from carrot_twisted.consumer import Consumer
from carrot_twisted.models import MessageLog
from carrot_twisted.old_tables import MOVED, OldMessageLog

if TYPE_CHECKING:
    import pika

_logger = logging.getLogger("carrot_twisted.adopting")


class AdoptingConsumer(Consumer):
    """Makes the rows of messages that come from publishers with django-carrot."""

    def get_message_log(self, properties: pika.BasicProperties, body: bytes) -> MessageLog | None:
        """The row of a message; for one of an old publisher, made of the message and its old row.

        Returns:
            The row. None: there is none, and no old one that waits; the service asks again for
            some seconds, because old publishers send before they commit, and then moves the
            message to the queue's dead-letter queue.

        Raises:
            PoisonMessage: the body is not of django-carrot's form.
            InvalidMessage: the old row is not one that may run here; the text says why.
        """
        log = super().get_message_log(properties, body)
        if log is not None or properties.app_id == wire.APP_ID:
            return log
        source, target = router.db_for_write(OldMessageLog), router.db_for_write(MessageLog)
        # The row of ours commits first: what is marked as moved is there.
        with transaction.atomic(using=source), transaction.atomic(using=target):
            rows = OldMessageLog.objects.using(source).select_for_update().order_by("pk")
            old = rows.filter(uuid=properties.message_id).first()
            if old is None or old.status not in MessageLog.UNFINISHED:
                return None
            row = old_rows.new_log(old, old_rows.message_arguments(body))
            row.queue = self.queue
            # Its message is here, whatever the old row says.
            row.confirmed_at = Now()
            MessageLog.objects.using(target).bulk_create([row], ignore_conflicts=True)
            OldMessageLog.objects.using(source).filter(pk=old.pk).update(status=MOVED)
        _logger.info("Took over %s (%s) from a publisher with django-carrot", row.task, row.pk)
        return super().get_message_log(properties, body)
