# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

from typing import ClassVar

from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies: ClassVar = []

    operations: ClassVar = [
        migrations.CreateModel(
            name="Module",
            fields=[
                (
                    "name",
                    models.CharField(
                        help_text="Path below the source root, for example json/decoder.py.",
                        max_length=255,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("lines", models.PositiveIntegerField()),
                (
                    "definitions",
                    models.PositiveIntegerField(
                        help_text="Functions and classes, nested ones too."
                    ),
                ),
                ("imports", models.PositiveIntegerField(help_text="Import statements.")),
                (
                    "documented",
                    models.FloatField(
                        help_text="Share of the definitions, and the module itself, that have a "
                        "docstring."
                    ),
                ),
                ("indexed_at", models.DateTimeField(auto_now=True)),
            ],
        ),
    ]
