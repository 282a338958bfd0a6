# SPDX-License-Identifier: Apache-2.0
"""`python3 run.py bench pages`: the pages of the monitor with many rows, beside those of others.

For each database and number of rows: fresh tables are filled by the database itself, then every
page is asked for, in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import facts, peers
from benchmarks.databases import Database, Postgres, Sqlite
from benchmarks.pages.report import Part, text_of
from benchmarks.pages.timing import Timing
from benchmarks.servers import running
from devtools.environment import TOP, peer_python, peer_version
from devtools.steps import StepFailed, say, step

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SITE = "benchmarks.site_pages.settings"
ROWS = (1000, 100_000, 1_000_000)
#: Flower forgets the oldest tasks above this number, if nobody sets another.
MOST_OF_FLOWER = 100_000


def main(arguments: Sequence[str]) -> int:
    """Prepare, measure, print; what could not be measured ends it."""
    given = _parse(arguments)
    with running(broker=False, postgres="postgres" in given.database) as servers:
        if given.flower:
            peers.FLOWER.prepare(servers.log)
        databases: list[Database] = []
        if servers.postgres_url:
            databases.append(servers.stack.enter_context(Postgres(servers.postgres_url)))
        if "sqlite" in given.database:
            databases.append(servers.stack.enter_context(Sqlite(servers.folder)))
        parts = list(_parts(given, databases, servers.folder))
        known = facts.gather()
        for database in databases:
            known |= database.facts()
        if given.flower:
            known["Flower"] = str(peer_version(peers.FLOWER.name))
        known |= facts.load()
        say(text_of(parts, known))
        if given.json:
            content = {"facts": known, "parts": [vars(part) for part in parts]}
            given.json.write_text(json.dumps(content, default=vars, indent=1) + "\n")
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python3 run.py bench pages",
        description="Asks for each page of the monitor with many rows, and for those of others.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--rows", type=int, nargs="+", default=list(ROWS), metavar="N", help="sizes of the tables"
    )
    parser.add_argument("--requests", type=int, default=10, metavar="N", help="of each page")
    parser.add_argument(
        "--database",
        nargs="+",
        choices=("postgres", "sqlite"),
        default=["postgres", "sqlite"],
        help="where rows are",
    )
    parser.add_argument("--no-flower", dest="flower", action="store_false", help="leave Flower out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers to a file")
    return parser.parse_args(arguments)


def _parts(
    given: argparse.Namespace, databases: Sequence[Database], folder: Path
) -> Iterator[Part]:
    for count in given.rows:
        for database in databases:
            name = f"carrot_benchmark_{secrets.token_hex(3)}_pages"
            variables = {
                "BENCHMARK_DATABASE": database.create(name),
                "DJANGO_SETTINGS_MODULE": SITE,
            }
            probe = [sys.executable, "-m", "benchmarks.pages.probe"]
            with step(f"{database.label}: making {count:,} rows"):
                _run([*probe, "fill", str(count)], variables, folder)
            with step(f"{database.label}: asking for each page with {count:,} rows"):
                found = _run([*probe, "measure", str(given.requests)], variables, folder)
            yield _part(database.label, count, found)
        if given.flower and count <= MOST_OF_FLOWER:
            with step(f"Flower: feeding it {count:,} tasks, and asking for its list"):
                python = peer_python(peers.FLOWER.name)
                command = [python, "-m", "benchmarks.pages.flower_probe"]
                found = _run([*command, str(count), str(given.requests)], {}, folder)
            yield _part("memory", count, found)


def _part(database: str, count: int, found: list[dict[str, Any]]) -> Part:
    return Part(database=database, rows=count, timings=[Timing(**one) for one in found])


def _run(command: Sequence[str], variables: dict[str, str], folder: Path) -> Any:
    """Run a step; what it found is its last line."""
    log = folder / "pages.log"
    with log.open("ab") as errors:
        done = subprocess.run(
            command,
            cwd=TOP,
            env={**os.environ, "PYTHONPATH": str(TOP), **variables},
            stdout=subprocess.PIPE,
            stderr=errors,
            check=False,
        )
    if done.returncode:
        raise StepFailed(f"{' '.join(command)} failed:\n{log.read_text()[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])
