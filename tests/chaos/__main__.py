# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.chaos`: one chaos run. ``run.py chaos`` has everything in place first."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

from devtools.servers import ServerError
from devtools.steps import say
from tests.chaos import options
from tests.chaos.driver import Run

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Run; return 0 if every promise was kept, 1 if one was broken, 2 if the run went wrong."""
    given = options.parse(arguments)
    run = Run(given.plan, given.patience, given.sabotage, given.keep)
    try:
        report = run.perform()
    except (RuntimeError, ServerError) as error:
        say(f"The run itself went wrong: {error}")
        return 2
    say(f"\n{report.text()}")
    if given.json is not None:
        report.write_json(given.json)
    return 1 if report.violations else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
