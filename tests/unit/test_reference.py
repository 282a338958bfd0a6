# SPDX-License-Identifier: Apache-2.0
"""The reference is complete: what the code has is on its page, and the page has nothing else."""

from __future__ import annotations

import argparse
import ast
import inspect
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from django.core.management import load_command_class
from django.dispatch import Signal
from prometheus_client.metrics_core import CounterMetricFamily

import carrot_twisted
from carrot_twisted import command_line, conf, exceptions, signals
from carrot_twisted.management.commands import carrot_daemon, carrot_doctor, carrot_status
from carrot_twisted.models import MessageLog
from carrot_twisted.service import families, process_end
from carrot_twisted.service.consumption import EXIT_CALLBACK
from carrot_twisted.service_options import Options
from devtools import settings_page
from tests.unit.test_floors import SERVICE_WING, WEB_WING, floor

if TYPE_CHECKING:
    from collections.abc import Iterator

TOP = Path(__file__).resolve().parents[2]
PACKAGE = TOP / "carrot_twisted"
WAY = "## A message's way through the code"
#: Where the options of each command are told.
COMMANDS = {
    "carrot": "commands.md",
    "carrot_archive": "handlers.md",
    "carrot_daemon": "commands.md",
    "carrot_doctor": "commands.md",
    "carrot_import": "migrating-from-django-carrot.md",
    "carrot_queue": "commands.md",
    "carrot_send": "commands.md",
    "carrot_status": "commands.md",
    "carrot_worker": "commands.md",
}


def page(name: str) -> str:
    return (TOP / "docs" / name).read_text(encoding="utf-8")


def section(text: str, heading: str) -> str:
    """What stands under a heading, up to the next one that is as high."""
    _, found, rest = text.partition(f"\n{heading}\n")
    assert found, heading
    marks = heading.split()[0]
    return re.split(rf"^{marks} ", rest, flags=re.MULTILINE)[0]


def first_cells(text: str) -> list[str]:
    """Of each row of the tables, what stands in quotes in its first cell."""
    cells = re.findall(r"^\| ([^|]*) \|", text, flags=re.MULTILINE)
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def options_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Long options, those of subcommands included, without Django's own."""
    own = {"--help", "--version", "--verbosity", "--settings", "--pythonpath", "--traceback"}
    own |= {"--no-color", "--force-color", "--skip-checks"}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                yield from options_of(one)
        for option in action.option_strings:
            if option.startswith("--") and option not in own:
                yield option


@cache
def said() -> str:
    """All texts of the code, with … for values."""
    texts = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                texts.append(as_quoted(node))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(re.sub(r"\{[^}]*\}|%s|%r", "…", node.value))
    return "\n".join(texts)


def as_quoted(node: ast.AST) -> str:
    """A text of the code, as pages quote it."""
    if isinstance(node, ast.JoinedStr):
        return "".join(one.value if isinstance(one, ast.Constant) else "…" for one in node.values)  # type: ignore[misc]
    return str(ast.literal_eval(node))


def test_the_tables_of_settings_are_those_of_the_code() -> None:
    assert page("settings.md") == settings_page.written(), "python3 run.py docs writes them anew"
    assert "|  |\n" not in page("settings.md"), "a comment above each key says what it means"
    for name in conf._BROKER_TYPES:
        assert f"`{name}`" in section(page("settings.md"), "## Brokers"), name


def test_no_option_of_a_command_is_left_out() -> None:
    folder = PACKAGE / "management" / "commands"
    assert {path.stem for path in folder.glob("c*.py")} == COMMANDS.keys()
    for name, where in COMMANDS.items():
        parser = load_command_class("carrot_twisted", name).create_parser("manage.py", name)
        text = page(where)
        told = {one for one in re.findall(r"--[a-z][a-z-]*", text) if name in text}
        assert set(options_of(parser)) <= told, name


def test_no_option_of_twistd_carrot_is_left_out_and_none_is_made_up() -> None:
    options = Options()
    known = {f"--{name.rstrip('=')}" for name in options.longOpt} - {"--help", "--version"}
    text = page("commands.md") + page("callbacks.md")
    assert not [one for one in known if f"`{one}" not in text]
    for heading in ("## manage.py carrot", "## twistd carrot"):
        cells = first_cells(section(page("commands.md"), heading))
        assert {one for one in cells if one.startswith("--")} <= known | {"--logfile"}


def test_no_option_of_carrot_is_left_out() -> None:
    text = section(page("callbacks.md"), "## The command carrot")
    parser = command_line._parser()
    assert {one for one in options_of(parser) if f"`{one}" not in text} == set()


def test_the_ids_of_checks_are_those_of_the_code() -> None:
    found = {
        name
        for file in ("checks.py", "backends.py")
        for name in re.findall(r'id="(carrot_twisted\.[EW]\d+)"', (PACKAGE / file).read_text())
    }
    for file in ("conf.py", "handler_settings.py"):
        for number in re.findall(r"\.problem\(\s*(\d+),", (PACKAGE / file).read_text()):
            found.add(f"carrot_twisted.E{int(number):03}")
    told = first_cells(section(page("reference.md"), "## Check ids"))
    assert [one for one in told if one.startswith("carrot_twisted.")] == sorted(found)


def test_the_fields_of_rows_are_those_of_the_model() -> None:
    told = first_cells(section(page("reference.md"), "## Fields of a task's row"))
    assert sorted(told) == sorted(field.name for field in MessageLog._meta.get_fields())


def test_signals_and_exceptions_are_those_of_the_code() -> None:
    known = [name for name, value in vars(signals).items() if isinstance(value, Signal)]
    assert first_cells(section(page("reference.md"), "## Signals")) == known
    text = section(page("reference.md"), "## Exceptions")
    for name, value in vars(exceptions).items():
        if inspect.isclass(value) and issubclass(value, BaseException):
            assert f"`{name}`" in text, name
    made_up = set(re.findall(r"`([A-Z][a-z]+[A-Za-z]+)`", text)) - vars(exceptions).keys()
    assert made_up <= {"Exception"}


def test_metrics_are_those_of_the_code() -> None:
    text = section(page("health.md"), "## Metrics")
    rows = re.findall(r"^\| `(carrot_\w+)` \| (\w+) \| ([^|]*)\|", text, flags=re.MULTILINE)
    known = []
    for name, (kind, labels, _) in families.CATALOGUE.items():
        suffix = "_total" if kind is CounterMetricFamily else ""
        word = kind.__name__.removesuffix("MetricFamily").lower()
        known.append((f"{name}{suffix}", word, labels))
    assert [(n, k, tuple(re.findall(r"`(\w+)`", labels))) for n, k, labels in rows] == known


def test_exit_statuses_are_those_of_the_code() -> None:
    text = page("commands.md")
    for heading, statuses in (
        (
            "## manage.py carrot",
            {0, process_end.EXIT_CRASH, 2, process_end.EXIT_RECYCLE, process_end.EXIT_CONFIG},
        ),
        (
            "## manage.py carrot_daemon",
            {0, 1, 2, carrot_daemon.EXIT_NOT_RUNNING, carrot_daemon.EXIT_UNKNOWN},
        ),
        (
            "## manage.py carrot_status",
            {0, carrot_status.EXIT_PROBLEMS, carrot_status.EXIT_UNKNOWN},
        ),
        ("## manage.py carrot_doctor", {0, carrot_doctor.EXIT_ERRORS}),
    ):
        table = section(text, heading).partition("| exit status |")[2]
        assert set(map(int, re.findall(r"^\| (\d+) \|", table, re.MULTILINE))) == statuses, heading
    assert str(EXIT_CALLBACK) in section(page("reference.md"), "## Exit statuses")


def test_the_python_api_has_all_that_is_exported() -> None:
    text = page("python-api.md")
    documented = set(re.findall(r"^\.\. auto\w+:: ([\w.]+)", text, flags=re.MULTILINE))
    documented |= {
        name for line in re.findall(r":members: (.+)", text) for name in line.split(", ")
    }
    for name in carrot_twisted.__all__:
        value: Any = getattr(carrot_twisted, name)
        paths = {name, f"{value.__module__}.{value.__qualname__}", value.__module__}
        assert paths & documented, name


def quoted_messages() -> list[str]:
    text = page("troubleshooting.md")
    for heading in ("## Connections", "## Django and Python"):
        text = text.replace(section(text, heading), "")
    return [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")]


def test_messages_that_are_explained_are_those_of_the_code() -> None:
    texts = said()
    messages = quoted_messages()
    assert len(messages) > 90
    pieces = [piece.strip() for message in messages for piece in message.split("…")]
    assert [piece for piece in pieces if piece not in texts] == []


@pytest.mark.parametrize(
    ("file", "functions", "argument"),
    [
        ("checks.py", ("Error", "Warning"), 0),
        ("backends.py", ("Error",), 0),
        ("doctor.py", ("_error", "_warning"), 1),
    ],
)
def test_each_finding_is_explained(file: str, functions: tuple[str, ...], argument: int) -> None:
    """By its longest piece without a value."""
    text = page("troubleshooting.md")
    tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
    texts = [
        node.args[argument]
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in functions
    ]
    found = [as_quoted(one) for one in texts if isinstance(one, ast.JoinedStr | ast.Constant)]
    assert len(found) > 2
    longest = [max(message.split("…"), key=len).strip() for message in found]
    assert [piece for piece in longest if piece not in text] == []


def test_words_of_the_glossary_are_used() -> None:
    words = re.findall(r"^\| \*\*([^*]+)\*\*", page("glossary.md"), flags=re.MULTILINE)
    assert words == sorted(words, key=str.lower)
    pages = [one for one in (TOP / "docs").glob("*.md") if one.name != "glossary.md"]
    files = [*pages, *PACKAGE.rglob("*.py")]
    used = "\n".join(one.read_text(encoding="utf-8").lower() for one in files)
    assert [word for word in words if not re.search(rf"\b{word.lower()}", used)] == []


def test_modules_stand_on_the_floors_that_the_architecture_tells() -> None:
    text = section(page("architecture.md"), "## Floors")
    rows = re.findall(r"^\| (\d) \| (.*)\|", text, flags=re.MULTILINE)
    assert [int(number) for number, _ in rows] == [5, 4, 3, 2, 1, 0]
    for number, cells in rows:
        # In the last cell stand programs.
        names = cells if number != "5" else cells.rpartition("|")[0].rpartition("|")[0]
        for name in re.findall(r"`([\w.]+)`", names):
            wings = {SERVICE_WING, WEB_WING} if number == "5" else {int(number)}
            assert floor(name) in wings, name
    for file in re.findall(r"`([\w/]+\.py)`", section(page("architecture.md"), WAY)):
        assert (PACKAGE / file).exists(), file
