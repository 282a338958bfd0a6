# SPDX-License-Identifier: Apache-2.0
"""``manage.py carrot_status`` beside a running service: it tells the truth, good or bad."""

from __future__ import annotations

import io
import json
import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from django.core.management import call_command

from carrot_twisted.utilities import publish_message
from tests.processes import ServiceProcess, carrot, wait_until
from tests.project import tasks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from devtools.servers import RabbitMQ

pytestmark = pytest.mark.once


def state() -> tuple[dict[str, Any], int]:
    """All that the command tells, and its exit status."""
    out = io.StringIO()
    code: Any = 0
    try:
        call_command("carrot_status", "--json", stdout=out)
    except SystemExit as end:
        code = end.code
    return json.loads(out.getvalue()), code


def test_it_tells_what_runs_what_is_wrong_and_when_all_is_well_again(
    private_broker: RabbitMQ, start_service: Callable[..., ServiceProcess], tmp_path: Path
) -> None:
    address = f"@carrot-status-{os.getpid()}"
    told: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address.replace("@", "\0"))
        systemd.setblocking(False)

        def hears(text: str, since: int = 0) -> bool:
            with suppress(BlockingIOError):
                while True:
                    told.append(systemd.recv(4096).decode())
            return any(text in one for one in told[since:])

        # It tells its state with each heartbeat.
        service = start_service(
            CARROT_BROKER_URL=private_broker.url, NOTIFY_SOCKET=address, **carrot(lease=4)
        )
        wait_until(lambda: hears("READY=1"))
        wait_until(lambda: hears("STATUS=Consuming from all queues"))
        wait_until(lambda: state()[1] == 0, what="no problems")
        publish_message(tasks.wait_for_file, str(tmp_path / "go"), seconds=60)
        wait_until(lambda: state()[0]["workers"][0]["running"], what="a busy thread")
        (worker,) = state()[0]["workers"]
        assert (worker["threads"], worker["pid"]) == (4 + 1, service.process.pid)
        (busy,) = worker["running"]
        assert busy["task"] == "tests.project.tasks.wait_for_file"
        assert busy["thread"].startswith("default")
        assert not busy["stuck"]

        private_broker.stop()
        wait_until(lambda: "not consumed" in str(state()[0]["problems"]), what="a problem")
        found, code = state()
        assert code == 1
        text = "\n".join(found["problems"])
        assert "queue default is not consumed: no connection to" in text
        assert "for publishing" in text
        assert private_broker.url not in text
        wait_until(lambda: hears("not consumed: no connection"))

        since = len(told)
        private_broker.start()
        wait_until(lambda: state()[1] == 0, what="no problems")
        wait_until(lambda: hears("STATUS=Consuming from all queues", since))
        (tmp_path / "go").touch()
        assert service.stop() == 0
