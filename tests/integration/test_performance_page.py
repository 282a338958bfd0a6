# SPDX-License-Identifier: Apache-2.0
"""What docs/performance.md has users write does what the page says."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from django.conf import settings
from django.db import connection
from django.db.utils import ConnectionHandler

from tests.pages import TOP, blocks

pytestmark = [pytest.mark.only("postgres"), pytest.mark.django_db]

PAGE = TOP / "docs" / "performance.md"


def test_its_settings_make_commits_that_do_not_wait() -> None:
    names: dict[str, Any] = {"DATABASES": copy.deepcopy(settings.DATABASES)}
    for text in blocks(PAGE, "python"):
        exec(text, names)  # noqa: S102
    other = ConnectionHandler(names["DATABASES"])["default"]
    try:
        with other.cursor() as cursor:
            cursor.execute("SHOW synchronous_commit")
            assert cursor.fetchone() == ("off",)
    finally:
        other.close()


def test_its_statements_are_taken() -> None:
    with connection.cursor() as cursor:
        for text in blocks(PAGE, "sql"):
            cursor.execute(text)
        cursor.execute(
            "SELECT reloptions FROM pg_class WHERE relname = 'carrot_twisted_messagelog'"
        )
        (options,) = cursor.fetchone()
    assert "autovacuum_vacuum_scale_factor=0.01" in options
