# SPDX-License-Identifier: Apache-2.0
"""Runs a command of Django's in so many processes: a worker of one slot, where others have threads.

    python -m benchmarks.copies 4 db_worker --interval=0.1

All begin at the same time: they are forked when everything is imported, or else the first ones
would work alone while the others are still starting. The status is the worst one of theirs.
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import TYPE_CHECKING, NoReturn

import django
from django.core.management import call_command

if TYPE_CHECKING:
    from collections.abc import Sequence


def main() -> int:
    """Start them, and wait for all."""
    count, name, *arguments = sys.argv[1:]
    django.setup()
    children = []
    for _ in range(int(count)):
        child = os.fork()
        if not child:
            run(name, arguments)
        children.append(child)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


def run(name: str, arguments: Sequence[str]) -> NoReturn:
    """Run the command, and end this process."""
    status = 1
    try:
        call_command(name, *arguments)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


if __name__ == "__main__":
    sys.exit(main())
