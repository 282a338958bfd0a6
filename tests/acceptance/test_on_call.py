# SPDX-License-Identifier: Apache-2.0
"""What docs/on-call.md tells to type works as it stands there."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

import pytest
from django.core.management import call_command

from carrot_twisted.models import MessageLog
from carrot_twisted.utilities import publish_message
from tests.integration.test_service import run
from tests.processes import REPOSITORY, ServiceProcess, wait_until
from tests.project import tasks

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Broker

PAGE = (REPOSITORY / "docs" / "on-call.md").read_text()
(AGAIN,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
#: Arguments of the command, by its first.
DEAD = {
    words[0]: words
    for line in re.findall(r"^python manage.py carrot_archive (.*)$", PAGE, flags=re.MULTILINE)
    if (words := shlex.split(line))
}


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

    for action in ("list", "show"):
        call_command("carrot_archive", *DEAD[action])
        assert "no MessageLog has this message_id" in capsys.readouterr().out
    wait_until(lambda: broker.depth("default.dead") == 1)

    row.save(force_insert=True)
    call_command("carrot_archive", *DEAD["replay"])
    assert run(row).status == MessageLog.COMPLETED
    assert broker.depth("default.dead") == 0

    broker.send("default.dead", b"nonsense")
    wait_until(lambda: broker.depth("default.dead") == 1)
    call_command("carrot_archive", *DEAD["delete"])
    assert "default.dead: 1 of 1 messages deleted" in capsys.readouterr().out
    wait_until(lambda: broker.depth("default.dead") == 0)


@pytest.mark.once
def test_failed_tasks_run_again(
    start_service: Callable[..., ServiceProcess], capsys: pytest.CaptureFixture[str]
) -> None:
    start_service()
    failed = run(publish_message(tasks.fail, "for a reason"))
    exec(AGAIN.replace("myapp.tasks.report", failed.task), {})  # noqa: S102
    assert "for a reason" in capsys.readouterr().out
    assert run(MessageLog.objects.get()).pk != failed.pk
