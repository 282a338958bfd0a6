# SPDX-License-Identifier: Apache-2.0
"""Whom we compare with and install apart: each has an environment of its own, with its own pins.

So what one of them pins, or fails to install, touches neither us nor the others. Celery is not
here: it lives beside us, as an extra of our package.

Standard library only: it is read before anything is installed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from devtools.environment import prepare_peer
from devtools.interpreters import find_python
from devtools.machine import prepare_machine
from devtools.steps import StepFailed, say

if TYPE_CHECKING:
    from pathlib import Path


class NotHere(Exception):
    """This machine does not have what a peer needs beside its packages; the text says what."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Packages of others, and what they need."""

    name: str
    """Of the package that we compare with."""
    requirements: tuple[str, ...]
    alone: tuple[str, ...] = ()
    """Installed without what they ask for."""
    beside: tuple[str, ...] = ()
    """More packages whose versions are told."""
    pythons: tuple[str, ...] = ()
    """Versions that it runs with, the best one first; none: ours."""
    redis: bool = False
    """Whether it needs Redis."""

    @property
    def told(self) -> tuple[str, ...]:
        """Packages whose versions are told."""
        return (self.name, *self.beside)

    def prepare(self, log: Path) -> None:
        """Have it installed.

        Raises:
            NotHere: it needs an older Python, or Redis.
            StepFailed: it could not be installed.
        """
        python = None
        if self.pythons:
            python = find_python(self.pythons)
            if python is None:
                raise NotHere(f"{self.name} needs Python {' or '.join(self.pythons)}")
        if self.redis:
            try:
                prepare_machine(rabbitmq=False, postgresql=False, redis=True, log=log)
            except StepFailed as error:
                say(str(error))
                raise NotHere(f"{self.name} needs Redis") from error
        prepare_peer(self.name, *self.requirements, alone=self.alone, python=python, log=log)


# All of Django 5.2 share our Django and its driver, so that only the task queues differ. 5.2 and
# not what is newest: it is the one that we run with on Python 3.11.
DJANGO = ("Django>=5.2,<5.3", "psycopg[binary]>=3.2")

FEDORA = Peer(
    name="fedora-messaging",
    # It asks for Twisted and pika, as we do, and pins them otherwise.
    requirements=("fedora-messaging>=3.9",),
)
FLOWER = Peer(name="flower", requirements=("flower>=2.0",))
DRAMATIQ = Peer(
    name="dramatiq",
    # The newest of both; RabbitMQ, as we have it.
    requirements=("dramatiq[rabbitmq]==2.2.1", "django-dramatiq==0.15.0", *DJANGO),
    beside=("django-dramatiq",),
)
PROCRASTINATE = Peer(
    name="procrastinate",
    # The newest, with its part for Django.
    requirements=("procrastinate[django]==3.10.0", *DJANGO),
)
TASKS_DB = Peer(
    name="django-tasks-db",
    # The newest; "compat" brings django-tasks, for a Django that has no tasks of its own.
    requirements=("django-tasks-db[compat]==0.13.0", *DJANGO),
    beside=("django-tasks",),
)
HUEY = Peer(
    name="huey",
    # The newest of both; hiredis reads Redis' answers in C, which redis-py advises.
    requirements=("huey==3.5.4", "redis[hiredis]==8.1.0", *DJANGO),
    beside=("redis", "hiredis"),
    redis=True,
)
DJANGO_CARROT = Peer(
    name="django-carrot",
    # The last release, without what it asks for: one of that cannot be built by a current pip.
    alone=("django-carrot==1.5.0",),
    requirements=(
        "Django==2.2.28",  # it asks for a Django below 3
        "pika==0.13.1",  # and for a pika below 0.14
        "djangorestframework==3.13.1",  # the last one for Django 2.2
        "psycopg2-binary==2.8.6",  # Django 2.2 does not take the time zones of a newer one
        "psutil",
        "json2html",
        "setuptools<81",  # Django 2.2 imports distutils
    ),
    pythons=("3.8", "3.7"),
)
PEERS = (FEDORA, DRAMATIQ, PROCRASTINATE, TASKS_DB, HUEY, DJANGO_CARROT)
