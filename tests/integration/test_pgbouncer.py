# SPDX-License-Identifier: Apache-2.0
"""PgBouncer between everybody and PostgreSQL, with the settings of ``deploy/pgbouncer``."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from django.db import connection

from carrot_twisted.models import MessageLog
from carrot_twisted.utilities import create_scheduled_task
from devtools.servers import PgBouncer, temporary_folder
from tests.conftest import current_database_url, run_python, running
from tests.pages import DOCS, blocks
from tests.processes import REPOSITORY, wait_until
from tests.project import tasks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.integration.test_service import StartService

pytestmark = pytest.mark.only("postgres")

SETTINGS = (REPOSITORY / "deploy/pgbouncer/pgbouncer.ini").read_text().partition("[pgbouncer]\n")[2]
#: Connections to the server: fewer than there are clients, so that none has one for itself.
CONNECTIONS = 3
PUBLISH = """
import django
django.setup()
from django.db import transaction
from carrot_twisted.models import MessageLog
from carrot_twisted.utilities import create_message, publish_many, publish_message
from tests.project import tasks
publish_many(create_message(tasks.effect, task_args=[str(n)]) for n in range(100))
for number in range(100, 120):
    with transaction.atomic():
        publish_message(tasks.effect, str(number), 0.02)
assert len({*MessageLog.objects.values_list("pk").iterator(chunk_size=10)}) >= 120
"""
#: With what docs/deployment.md says of connections to PgBouncer, but for where it is.
POOLED = """
from tests.settings import *
mine = DATABASES["default"]
{shown}
where = ("HOST", "PORT", "NAME", "USER", "PASSWORD")
DATABASES["default"] |= {{name: mine[name] for name in where}}
"""


@pytest.fixture
def bouncer(transactional_db: None) -> Iterator[PgBouncer]:
    """In front of the tests' database."""
    settings = f"{SETTINGS}default_pool_size = {CONNECTIONS}\n"
    with (
        temporary_folder() as folder,
        running(PgBouncer(folder / "bouncer", current_database_url(), settings=settings)) as server,
    ):
        yield server


def test_publishing_services_and_schedules_work_by_transactions(
    bouncer: PgBouncer,
    start_service: StartService,
    broker_url: str,
    ledger: Callable[[], list[str]],
    tmp_path: Path,
) -> None:
    (shown,) = (one for one in blocks(DOCS / "deployment.md", "python") if "pgbouncer" in one)
    (tmp_path / "pooled.py").write_text(POOLED.format(shown=shown))
    through = {"CARROT_DATABASE_URL": bouncer.url}
    pooled = {"PYTHONPATH": f"{tmp_path}:{REPOSITORY}", "DJANGO_SETTINGS_MODULE": "pooled"}
    create_scheduled_task(tasks.effect, {"seconds": 1}, key="tick")
    services = [start_service("--concurrency=8", **through) for _ in range(2)]
    done = run_python(PUBLISH, broker_url, **through, **pooled)
    assert done.returncode == 0, done.stdout
    wait_until(lambda: ledger().count("tick") >= 3 and len(ledger()) >= 123)
    # More clients than connections; all but this test's own are PgBouncer's.
    assert bouncer.log.read_text().count("login attempt") > CONNECTIONS
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
        assert cursor.fetchone() <= (CONNECTIONS + 1,)
    for service in services:
        assert service.stop() == 0
        assert "Traceback" not in service.log
    times = Counter(ledger())
    del times["tick"]
    assert times == Counter(str(number) for number in range(120))
    assert not MessageLog.objects.filter(status=MessageLog.FAILED).exists()
