# SPDX-License-Identifier: Apache-2.0
"""Migrations are applied while services of the version before run: what they may change."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from django.db import connection, migrations
from django.db.migrations.loader import MigrationLoader
from django.db.models import NOT_PROVIDED

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django.db.migrations.operations.base import Operation
    from django.db.migrations.state import ProjectState

APP = "carrot_twisted"
#: What old code neither misses nor breaks.
HARMLESS = (
    migrations.AddField,
    migrations.AlterField,
    migrations.AddIndex,
    migrations.RemoveIndex,
    migrations.CreateModel,
    migrations.AlterModelOptions,
    migrations.RunPython,
    migrations.RunSQL,
)
#: Constraints on tables that old code writes to, each with the reason why it cannot break them.
KEPT_BY_OLD_CODE = {
    "carrot_priority_at_most_255": "old code leaves out priority, which is 0 then",
    "carrot_unique_key": "old code leaves out unique_key, which is empty then",
}


def operations() -> Iterator[tuple[str, Operation, ProjectState]]:
    """Of each migration but the first: its name, its operations, and the models before each."""
    loader = MigrationLoader(connection)
    names = sorted(name for app, name in loader.disk_migrations if app == APP)
    for before, name in pairwise(names):
        state = loader.project_state((APP, before))
        for operation in loader.disk_migrations[APP, name].operations:
            yield name, operation, state.clone()
            operation.state_forwards(APP, state)


def may_be_left_out(field: Any) -> bool:
    """Whether an INSERT that does not name the column succeeds."""
    return bool(field.null or field.db_default is not NOT_PROVIDED)


@pytest.mark.django_db
def test_code_of_the_version_before_can_go_on_writing() -> None:
    seen = 0
    for name, operation, before in operations():
        seen += 1
        if isinstance(operation, migrations.AddConstraint):
            assert operation.constraint.name in KEPT_BY_OLD_CODE, f"{name}: may old rows break it?"
            continue
        assert isinstance(operation, HARMLESS), f"{name}: old code misses what {operation} takes"
        if isinstance(operation, migrations.AddField):
            assert may_be_left_out(operation.field), (
                f"{name}: {operation.name} needs null=True or db_default"
            )
        elif isinstance(operation, migrations.AlterField):
            model = before.models[APP, operation.model_name_lower]
            old, new = model.fields[operation.name], operation.field
            assert type(old) is type(new), f"{name}: the type of {operation.name} changes"
            assert may_be_left_out(new) or not may_be_left_out(old)
            assert new.null or not old.null, f"{name}: {operation.name} was empty in old rows"
            lengths = [getattr(field, "max_length", None) or 0 for field in (old, new)]
            assert lengths[0] <= lengths[1], f"{name}: {operation.name} is too short for old rows"
    assert seen > 30
