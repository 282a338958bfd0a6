# SPDX-License-Identifier: Apache-2.0
"""Metadata of the package. Tools are configured in pyproject.toml."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent


def read_version() -> str:
    """Return the version without importing the package, whose dependencies may be missing."""
    source = (HERE / "carrot_twisted" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "(.+)"$', source, re.MULTILINE)
    if match is None:
        raise SystemExit('carrot_twisted/__init__.py holds no line `__version__ = "..."`')
    return match.group(1)


setup(
    name="carrot-twisted",
    version=read_version(),
    description="Task queue and message consumer for Django on RabbitMQ, run by Twisted",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    # The dot makes an editable install a plain path entry. Twisted looks for plugins in folders
    # of sys.path and would not see those that an import hook makes up.
    package_dir={"": "."},
    packages=[
        *find_packages(".", include=["carrot_twisted", "carrot_twisted.*"]),
        "twisted.plugins",
    ],
    # No __init__.py below twisted/: it would overwrite Twisted's own.
    package_data={
        "carrot_twisted": ["py.typed", "templates/**/*", "static/**/*", "api/openapi.json"]
    },
    include_package_data=False,
    entry_points={
        "console_scripts": ["carrot = carrot_twisted.command_line:main"],
        "pytest11": ["carrot = carrot_twisted.pytest_plugin"],
    },
    # Where systemd finds them if this is installed for all users.
    data_files=[
        (
            "lib/systemd/system",
            ["systemd/carrot@.service", "systemd/carrot-callback@.service"],
        )
    ],
    install_requires=[
        # 5.2 is the oldest release that still gets fixes; each newer one is tested before it is
        # let in. 6.0 and later need Python 3.12, which pip sees to.
        "Django>=5.2,<6.2",
        # The service. With TLS, because a broker outside this machine is reached by amqps://.
        "twisted[tls]>=24.3",
        # AMQP. 1.4.3 repairs heartbeats; 2.0 drops the adapter for Twisted.
        "pika>=1.4.3,<2",
        # Users' own hooks may return plain values, Deferreds or coroutines.
        "txaio>=23.1.1",
        # Crontabs, with Debian cron's rules for the days when clocks are changed. No dependencies.
        "cronsim>=2.7",
        # The monitor: htmx comes with it, so that no file of others is kept here.
        "django-htmx>=1.29,<2",
        # The monitor's JSON API: pages, fields and errors are those of django-carrot, which has it.
        "djangorestframework>=3.16",
        # What `--http` serves at /metrics: the text form, its escaping, and what is known of the
        # process. Not an extra: it has no dependencies, and a service that is asked for its metrics
        # has them. Only `--http` imports it.
        "prometheus-client>=0.20",
    ],
    extras_require={
        # The driver with its C library: no compiler, no libpq-dev.
        "postgres": ["psycopg[binary]>=3.2"],
        # Spans from publisher to task; what they are sent with is the project's choice.
        "otel": ["opentelemetry-api>=1.24"],
        # Django's own task interface for Django 5.2, which has none yet.
        "tasks": ["django-tasks>=0.11"],
        "test": [
            "axe-playwright-python",  # looks at the monitor's pages for people who see less
            "build",  # the wheel that the acceptance tests install ...
            "setuptools>=77",  # ... without fetching a build environment
            "coverage>=7.10.3",  # which code tests reach, also in processes that they start
            "django-stubs>=5.2",
            "django-tasks>=0.11",  # Django 5.2 has no django.tasks
            "djangorestframework-stubs",
            "drf-spectacular",  # writes the description of the JSON API
            "hypothesis",
            "matplotlib>=3.9",  # the benchmark's charts
            "mypy",
            "mypy-zope",
            "opentelemetry-sdk>=1.24",  # keeps the spans that tests look at
            "playwright",  # drives Chromium
            "pyyaml",  # reads the rules for alerts
            "pytest>=8.4",
            "pytest-django>=4.11",
            "pytest-twisted>=1.14.3",
            "ruff",
            "schemathesis>=4",  # asks the JSON API what its description allows
            "twine",  # reads a package as an index of packages does
        ],
        # HTML of the documentation. Sphinx rather than MkDocs, whose first series nobody maintains
        # any more and whose second one has no plugins: Sphinx has several releases a year, reads
        # docstrings itself, and tells each link that leads nowhere. Pages stay Markdown, by
        # myst-parser; furo is a theme that needs no scripts of others.
        "docs": ["furo>=2024.8", "myst-parser>=4", "sphinx>=8"],
        "benchmark": [
            # Whom we compare with beside us; the others have environments of their own, see
            # benchmarks/peers.py.
            "celery>=5.5",
            "django-celery-results>=2.6",
            "matplotlib>=3.9",  # draws the charts
        ],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Environment :: No Input/Output (Daemon)",
        "Environment :: Web Environment",
        "Framework :: Django",
        "Framework :: Django :: 5.2",
        "Framework :: Django :: 6.0",
        "Framework :: Django :: 6.1",
        "Framework :: Twisted",
        "Intended Audience :: Developers",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Topic :: System :: Distributed Computing",
        "Typing :: Typed",
    ],
)
