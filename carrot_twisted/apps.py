# SPDX-License-Identifier: Apache-2.0
"""The Django app."""

from __future__ import annotations

from django.apps import AppConfig


class CarrotConfig(AppConfig):
    """Connects the publisher to committed rows and registers the system checks."""

    name = "carrot_twisted"
    verbose_name = "Carrot"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from carrot_twisted import checks, publisher  # noqa: F401
