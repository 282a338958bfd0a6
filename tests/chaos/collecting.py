# SPDX-License-Identifier: Apache-2.0
"""Gathers the evidence of a run from database, broker, ledgers and logs."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from carrot_twisted.virtual_host import VirtualHost
from tests.chaos import ledger, limits
from tests.chaos.evidence import Evidence, Rate, Row

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.chaos.evidence import ServiceFacts
    from tests.chaos.stage import Stage

ROWS = """
SELECT json_build_object(
    'uuid', uuid, 'task', task,
    'key', task_args::json->>CASE WHEN flow_step > 0 THEN 1 ELSE 0 END,
    'status', status,
    'attempts', attempts, 'crashes', crashes, 'exception', exception,
    'published', extract(epoch FROM publish_time),
    'ended', extract(epoch FROM coalesce(completion_time, failure_time)),
    'slot', slot_key, 'rate', rate_key)
FROM carrot_twisted_messagelog
"""
LOST = """
SELECT json_build_array(message, number, extract(epoch FROM ended)) FROM carrot_twisted_attempt
"""
STARTS = "SELECT json_build_array(uuid, rate, extract(epoch FROM at)) FROM chaos_start"
UNFINISHED = """
SELECT count(*) FROM carrot_twisted_messagelog WHERE status IN ('PUBLISHED', 'IN_PROGRESS')
"""
LAST_END = """
SELECT coalesce(max(extract(epoch FROM coalesce(completion_time, failure_time))), 0)
FROM carrot_twisted_messagelog
"""
TRACEBACK = re.compile(r"Traceback \(most recent call last\):\n((?:.*\n)*?)(?=\S*\d{4}-|\Z)")


def unfinished(stage: Stage) -> int:
    """Rows that are not final."""
    return int(stage.database.sql(UNFINISHED))


def last_end(stage: Stage) -> float:
    """When the last task came to its end, in seconds since the epoch."""
    return float(stage.database.sql(LAST_END))


def queues(stage: Stage) -> dict[str, tuple[int, int]]:
    """Ready and unacknowledged messages of all queues."""
    text = stage.broker.ctl(
        "list_queues",
        "--no-table-headers",
        "--vhost",
        stage.broker.name,
        "name",
        "messages_ready",
        "messages_unacknowledged",
    )
    lines = (line.split("\t") for line in text.splitlines() if line)
    return {name: (int(ready), int(unacked)) for name, ready, unacked in lines}


def dead_letters(stage: Stage, names: Sequence[str]) -> Iterator[str]:
    """Bodies of all dead letters, taken off their queues."""
    connection = VirtualHost(stage.broker.url).blocking_connection
    channel = connection.channel()
    for name in names:
        while True:
            method, _properties, body = channel.basic_get(name, auto_ack=True)
            if method is None:
                break
            yield body.decode(errors="replace")
    connection.close()


def tracebacks(logs: Sequence[Path]) -> Iterator[str]:
    """Where a log has a traceback, and the last line of that."""
    for log in logs:
        text = log.read_text(errors="replace")
        for match in TRACEBACK.finditer(text):
            lines = [line for line in match[1].splitlines() if line.strip()]
            yield f"{log.parent.name}/{log.name}: {lines[-1] if lines else '(empty)'}"
        if "Unhandled error in Deferred" in text:
            yield f"{log.parent.name}/{log.name}: Unhandled error in Deferred"


def collect(
    stage: Stage,
    *,
    starts: int,
    poison: Sequence[str],
    services: Sequence[ServiceFacts],
    unexpected_ends: Sequence[str],
    seconds_to_final: float | None,
    interrupting: int,
) -> Evidence:
    """Look at everything, when all services and publishers have ended.

    Args:
        stage: where it all happened.
        starts: so many in a period are allowed.
        poison: bodies of the poisonous messages.
        services: those that lived to the end.
        unexpected_ends: processes that ended by themselves.
        seconds_to_final: from the last fault on; None: given up.
        interrupting: how many faults may have interrupted a task.
    """
    held = queues(stage)
    logs = [*stage.folder.glob("service-*/log"), *stage.folder.glob("publisher-*.log")]
    passwords = [urlsplit(server.url).password or "" for server in (stage.broker, stage.database)]
    return Evidence(
        publishes=ledger.read(stage.publishes),
        effects=ledger.read(stage.effects),
        begins=ledger.read(stage.begins),
        rows=[Row(**json.loads(line)) for line in stage.database.sql(ROWS).splitlines()],
        lost={
            (uuid, number): ended
            for uuid, number, ended in map(json.loads, stage.database.sql(LOST).splitlines())
        },
        starts=[tuple(json.loads(line)) for line in stage.database.sql(STARTS).splitlines()],
        at_once=limits.AT_ONCE,
        rates={limits.API: Rate(limit=starts, per=limits.PERIOD)},
        notes=frozenset(stage.database.sql("SELECT key FROM chaos_note").split()),
        illegal=[
            line.replace("|", " ")
            for line in stage.database.sql("SELECT uuid, before, after FROM chaos_illegal").split(
                "\n"
            )
            if line
        ],
        queues=held,
        dead=list(dead_letters(stage, [name for name in held if name.endswith(".dead")])),
        poison=poison,
        services=services,
        unexpected_ends=unexpected_ends,
        tracebacks=list(tracebacks(logs)),
        secrets=[
            f"{path.parent.name}/{path.name}"
            for path in [*logs, stage.publishes, stage.effects, stage.begins]
            if any(word in path.read_text(errors="replace") for word in passwords)
        ],
        seconds_to_final=seconds_to_final,
        interrupting=interrupting,
    )
