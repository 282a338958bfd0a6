# SPDX-License-Identifier: Apache-2.0
"""``manage.py carrot_doctor``: what is wrong with everything that tasks need, and what mends it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from django.core.management.base import BaseCommand
from django.db import router

from carrot_twisted import doctor
from carrot_twisted.doctor import Level
from carrot_twisted.models import MessageLog

if TYPE_CHECKING:
    from collections.abc import Iterable

    from django.core.management.base import CommandParser

    from carrot_twisted.doctor import Finding

#: Exit status where something is an error.
EXIT_ERRORS = 1


class Command(BaseCommand):
    """All that ``doctor.examine`` finds."""

    help = (
        "Looks at versions, settings, database, clock, workers, brokers and queues, and says how "
        f"to mend what is wrong. It changes nothing. Exit status 0: no errors; {EXIT_ERRORS}: "
        "there are some."
    )
    #: They are among what it tells.
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the option for programs."""
        parser.add_argument("--json", action="store_true", help="Print everything as JSON.")

    def handle(self, *args: Any, **options: Any) -> None:
        """Print what is found; the exit status sums it up."""
        found = doctor.examine(router.db_for_write(MessageLog))
        errors = any(one.level is Level.ERROR for one in found)
        self.stdout.write(
            json.dumps({"ok": not errors, "findings": [asdict(one) for one in found]}, indent=1)
            if options["json"]
            else "\n".join(_lines(found))
        )
        if errors:
            sys.exit(EXIT_ERRORS)


def _lines(found: Iterable[Finding]) -> Iterable[str]:
    for one in found:
        yield f"{one.level.upper():<8}{one.about}: {one.text}"
        if one.remedy:
            yield f"        > {one.remedy}"
