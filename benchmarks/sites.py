# SPDX-License-Identifier: Apache-2.0
"""A step in a site's project beside what goes on there: `python -m benchmarks.sites SITE N`.

It publishes N tasks that do nothing, and leaves what is in the tables where it is; the steps of
`probe` begin with empty ones, which a running service would miss its own rows of.
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
