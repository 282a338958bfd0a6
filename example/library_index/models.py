# SPDX-License-Identifier: Apache-2.0
"""What the index knows about a source file."""

from __future__ import annotations

from django.db import models


class Module(models.Model):
    """The numbers of one Python source file."""

    name = models.CharField(
        max_length=255,
        primary_key=True,
        help_text="Path below the source root, for example json/decoder.py.",
    )
    lines = models.PositiveIntegerField()
    definitions = models.PositiveIntegerField(help_text="Functions and classes, nested ones too.")
    imports = models.PositiveIntegerField(help_text="Import statements.")
    documented = models.FloatField(
        help_text="Share of the definitions, and the module itself, that have a docstring."
    )
    indexed_at = models.DateTimeField(auto_now=True)

    def __str__(self) -> str:
        return self.name
