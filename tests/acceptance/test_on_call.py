# SPDX-License-Identifier: Apache-2.0
"""What docs/on-call.md tells to type works as it stands there."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from carrot_twisted.models import MessageLog
from carrot_twisted.utilities import publish_message
from tests.integration.test_service import run
from tests.processes import REPOSITORY, ServiceProcess, wait_until
from tests.project import tasks

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Broker

PAGE = (REPOSITORY / "docs" / "on-call.md").read_text()
AGAIN, DEAD = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.mark.once
def test_dead_letters_are_shown_and_put_back(
    start_service: Callable[..., ServiceProcess],
    broker: Broker,
    capsys: pytest.CaptureFixture[str],
) -> None:
    start_service()
    row = run(publish_message(tasks.echo))
    row.delete()
    headers = {"type": row.task}
    row.pk, row.status = MessageLog().pk, MessageLog.PUBLISHED
    broker.send("default", b"{}", message_id=str(row.pk), headers=headers, app_id="carrot-twisted")
    wait_until(lambda: broker.depth("default.dead") == 1)

    exec(DEAD, {})  # noqa: S102
    assert "no MessageLog has this message_id" in capsys.readouterr().out
    assert broker.depth("default.dead") == 1

    row.save(force_insert=True)
    advised = re.sub(r"# When .*?: |# And .*?: ", "", DEAD)
    assert "\n    channel.basic_publish(" in advised
    assert "\n    channel.basic_ack(" in advised
    exec(advised, {})  # noqa: S102
    assert run(row).status == MessageLog.COMPLETED
    assert broker.depth("default.dead") == 0


@pytest.mark.once
def test_failed_tasks_run_again(
    start_service: Callable[..., ServiceProcess], capsys: pytest.CaptureFixture[str]
) -> None:
    start_service()
    failed = run(publish_message(tasks.fail, "for a reason"))
    exec(AGAIN.replace("myapp.tasks.report", failed.task), {})  # noqa: S102
    assert "for a reason" in capsys.readouterr().out
    assert run(MessageLog.objects.get()).pk != failed.pk
