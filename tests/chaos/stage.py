# SPDX-License-Identifier: Apache-2.0
"""Broker, database and the proxied paths to them; where ledgers and logs are kept."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

from devtools.servers import PostgreSQL, RabbitMQ
from tests.chaos import limits
from tests.chaos.proxies import REPOSITORY, Proxies, ProxyPath

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

    from tests.chaos.schedule import Plan

SETTINGS = "tests.chaos.settings"
#: The project's own tables; a trigger that remembers changes of final rows; and some that remember
#: when those who let a task start had the limit to themselves: later, it may begin at any time.
SQL = """
CREATE TABLE chaos_note (key text PRIMARY KEY);
CREATE TABLE chaos_mark (key text);
CREATE TABLE chaos_illegal (uuid uuid, before text, after text, at timestamptz DEFAULT now());
CREATE FUNCTION chaos_audit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO chaos_illegal (uuid, before, after)
    VALUES (OLD.uuid, OLD.status, CASE TG_OP WHEN 'DELETE' THEN 'deleted' ELSE NEW.status END);
    RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
END $$;
CREATE TRIGGER chaos_audit BEFORE UPDATE OR DELETE ON carrot_twisted_messagelog
FOR EACH ROW WHEN (OLD.status IN ('COMPLETED', 'FAILED', 'CANCELLED'))
EXECUTE FUNCTION chaos_audit();
CREATE TABLE chaos_start (uuid uuid, rate text, at timestamptz);
CREATE FUNCTION chaos_locked() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('chaos.locked', clock_timestamp()::text, true);
    RETURN NEW;
END $$;
CREATE TRIGGER chaos_locked BEFORE INSERT OR UPDATE ON carrot_twisted_limitstate
FOR EACH ROW EXECUTE FUNCTION chaos_locked();
CREATE FUNCTION chaos_started() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO chaos_start
    VALUES (NEW.uuid, NEW.rate_key, nullif(current_setting('chaos.locked', true), '')::timestamptz);
    RETURN NEW;
END $$;
CREATE TRIGGER chaos_started AFTER UPDATE ON carrot_twisted_messagelog
FOR EACH ROW WHEN (NEW.rate_key IS NOT NULL
    AND OLD.status = 'PUBLISHED' AND NEW.status = 'IN_PROGRESS')
EXECUTE FUNCTION chaos_started();
"""


class Stage:
    """Everything but the actors. As a context manager it is ready inside the block.

    Args:
        plan: how many services there are to be.
        folder: for all files; another user must be able to pass through it.
        sabotage: name of a defect for all processes to have, or "".
    """

    def __init__(self, plan: Plan, folder: Path, sabotage: str = "") -> None:
        self.folder = folder
        self.effects = folder / "effects.jsonl"
        self.begins = folder / "begins.jsonl"
        self.publishes = folder / "publishes.jsonl"
        self.broker = RabbitMQ(folder / "rabbitmq")
        self.database = PostgreSQL(folder / "postgresql")
        self._plan = plan
        self._sabotage = sabotage
        self._stack = ExitStack()
        places = [f"service-{{}}:{number}" for number in range(plan.services)]
        self.proxies = Proxies(
            {
                place.format(what): server.port
                for place in [*places, "publisher-{}"]
                for what, server in (("broker", self.broker), ("database", self.database))
            }
        )

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.database)
            stack.enter_context(self.broker)
            stack.enter_context(self.proxies)
            subprocess.run(
                [sys.executable, "-m", "django", "migrate", f"--settings={SETTINGS}", "-v0"],
                cwd=REPOSITORY,
                env={**os.environ, "CARROT_DATABASE_URL": self.database.url},
                check=True,
            )
            self.database.sql(SQL)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def paths(self, target: str) -> list[ProxyPath]:
        """The proxied paths that a fault's target names: one, or with ``*`` those of all places."""
        if target.endswith("*"):
            return [self.proxies[target.replace("*", str(n))] for n in range(self._plan.services)]
        return [self.proxies[target]]

    def environment(self, who: str, place: int) -> dict[str, str]:
        """What a service or publisher is started with."""
        suffix = f":{place}" if who == "service" else ""
        variables = {
            "DJANGO_SETTINGS_MODULE": SETTINGS,
            "CARROT_BROKER_URL": self.proxies[f"{who}-broker{suffix}"].through(self.broker.url),
            "CARROT_DATABASE_URL": self.proxies[f"{who}-database{suffix}"].through(
                self.database.url
            ),
            "CHAOS_EFFECTS": str(self.effects),
            "CHAOS_BEGINS": str(self.begins),
            "CHAOS_PUBLISHES": str(self.publishes),
            "CHAOS_STARTS": str(limits.starts(self._plan)),
            "CHAOS_LEASE": str(self._plan.lease),
            "CHAOS_SABOTAGE": self._sabotage,
            "PYTHONUNBUFFERED": "1",
        }
        return variables | ({"CHAOS_PLACE": str(place)} if who == "service" else {})
