# SPDX-License-Identifier: Apache-2.0
"""Settings for mypy's Django plugin, which knows one settings module: tests and example in one."""

from __future__ import annotations

import sys
from pathlib import Path

from tests import settings as tests

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "example"))
from library import settings as example

SECRET_KEY = tests.SECRET_KEY
USE_TZ = tests.USE_TZ
INSTALLED_APPS = [*tests.INSTALLED_APPS, "library_index"]
DATABASES = tests.DATABASES
CARROT = tests.CARROT
SOURCE_ROOT = example.SOURCE_ROOT
