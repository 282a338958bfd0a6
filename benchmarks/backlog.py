# SPDX-License-Identifier: Apache-2.0
"""Publishes a backlog into a site that is running: `python -m benchmarks.backlog SITE N`.

N tasks that do nothing. What is in the tables stays where it is: the steps of `probe` begin with
empty ones, which a running service would miss its own rows of.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module

import django

from benchmarks.probe import Site


def site_of(package: str) -> Site:
    """The site that a package is."""
    found = vars(import_module(f"{package}.probe")).values()
    (kind,) = (
        one for one in found if isinstance(one, type) and issubclass(one, Site) and one is not Site
    )
    return kind()


if __name__ == "__main__":
    django.setup()
    site_of(sys.argv[1]).publish_all("no_op", int(sys.argv[2]))
    print(json.dumps({}))
