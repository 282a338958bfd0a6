# SPDX-License-Identifier: Apache-2.0
"""The house keeps its floors: a module imports from its own floor and those below, in no circle.

Floors are those of the design: vocabulary, records, publishing, execution, service, doors. On the
top floor are two wings that never meet: a web process never imports a reactor. ``checks`` lives on
the publishing floor: it needs neither web nor reactor, and both wings ask it, the web wing for
``manage.py check``, the service before it starts.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import carrot_twisted

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(carrot_twisted.__file__).parent
SERVICE_WING, WEB_WING = 5, 6
FLOORS: dict[int, tuple[str, ...]] = {
    0: (
        "",
        "admission_decision",
        "conf",
        "copies",
        "exceptions",
        "failpoints",
        "flow_plan",
        "handler_settings",
        "handler_topology",
        "identities",
        "histograms",
        "kinds",
        "limits",
        "log_fields",
        "outage",
        "outcomes",
        "processes",
        "properties_reader",
        "recording",
        "retry",
        "running",
        "showing",
        "signals",
        "signing",
        "standard_tasks",
        "task_limits",
        "task_options",
        "task_paths",
        "topology",
        "tracing",
        "triggers",
        "virtual_host",
        "wire",
    ),
    1: (
        "admission",
        "attempt",
        "begun_message",
        "due",
        "flow",
        "flow_settling",
        "flow_steps",
        "limit_state",
        "limit_statements",
        "message_log",
        "message_log_set",
        "migrations.*",
        "models",
        "old_tables",
        "operator_action",
        "paused_queue",
        "records",
        "rollups",
        "schedule_run",
        "scheduled_task",
        "state_words",
        "statements",
        "waiting",
        "worker",
    ),
    2: (
        "archive",
        "aside",
        "backends",
        "blocking",
        "callbacks",
        "changes",
        "checks",
        "declaring",
        "doctor",
        "flows",
        "handlers",
        "helper_tasks",
        "housekeeping",
        "moving",
        "objects",
        "old_rows",
        "outbox",
        "periodic",
        "publisher",
        "publishing",
        "replaying",
        "schedules",
        "sending",
        "signature",
        "standing",
        "statistics",
        "status",
        "task_results",
        "tasks",
        "utilities",
        "view_decorators",
    ),
    3: (
        "coroutine_call",
        "execution",
        "handling",
        "interruption",
        "own_thread",
        "pytest_plugin",
        "reactor_call",
        "task_attempt",
        "task_logging",
        "testing.*",
    ),
    4: ("adopting", "consumer", "scheduler", "service.*"),
    SERVICE_WING: (
        "callback_options",
        "carrot_service",
        "command_line",
        "management.*",
        "messaging",
        "service_options",
        "tap",
        "workers_service",
    ),
    WEB_WING: (
        "admin",
        "api.*",
        "apps",
        "event_stream",
        "monitor.*",
        "standalone_urls",
        "templatetags.*",
        "urls",
        "views",
    ),
}
#: What may be imported only when a function is called: a reactor installs itself on import.
NEVER_AT_MODULE_LEVEL = {"twisted.internet.reactor"}


@dataclass(frozen=True)
class Import:
    """One name that a module imports."""

    target: str
    line: int
    typing: bool
    """Under TYPE_CHECKING: only for the type checker."""
    lazy: bool
    """Inside a function."""


def parse(source: str) -> list[Import]:
    """All imports of a module, wherever they stand."""
    found: list[Import] = []

    def visit(node: ast.AST, typing: bool, lazy: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(a.name, node.lineno, typing, lazy) for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used here"
            found.extend(
                Import(f"{node.module}.{a.name}", node.lineno, typing, lazy) for a in node.names
            )
        inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.iter_child_nodes(node):
            visit(child, typing or for_types, inside)

    visit(ast.parse(source), False, False)
    return found


def module_name(path: Path) -> str:
    """``service.relay``; "" for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
IMPORTS = {name: parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def floor(name: str) -> int | None:
    for number, modules in FLOORS.items():
        for pattern in modules:
            folder = pattern.removesuffix(".*")
            if name == folder or (pattern.endswith(".*") and name.startswith(f"{folder}.")):
                return number
    return None


def own(one: Import) -> str | None:
    """The module of ours that an import statement loads."""
    package = carrot_twisted.__name__
    if one.target != package and not one.target.startswith(f"{package}."):
        return None
    name = one.target.removeprefix(package).removeprefix(".")
    while name not in FILES:
        name = name.rpartition(".")[0]
    return name


def edges(module: str) -> Iterator[tuple[str, Import]]:
    for one in IMPORTS[module]:
        target = own(one)
        if target is not None and target != module:
            yield target, one


def test_the_imports_of_a_module_are_found_wherever_they_stand() -> None:
    """The other tests here are worth what this reader is worth."""
    found = parse(
        "import a, b.c\n"
        "from d import e as f\n"
        "if TYPE_CHECKING:\n    import g\n"
        "class K:\n    async def m(self):\n        from h import i\n"
    )
    assert [(one.target, one.typing, one.lazy) for one in found] == [
        ("a", False, False),
        ("b.c", False, False),
        ("d.e", False, False),
        ("g", True, False),
        ("h.i", False, True),
    ]


def test_every_module_has_a_floor() -> None:
    homeless = [name for name in FILES if floor(name) is None]
    assert not homeless, f"say in FLOORS, and in the design, where they belong: {homeless}"


@pytest.mark.parametrize("module", FILES)
def test_a_module_imports_from_its_own_and_lower_floors_only(module: str) -> None:
    """Also inside functions. Names for the type checker do not count: nothing is loaded."""
    here = floor(module)
    assert here is not None
    wrong = []
    for target, one in edges(module):
        there = floor(target)
        assert there is not None
        allowed = there in (0, 1, 2, WEB_WING) if here == WEB_WING else there <= here
        if not allowed and not one.typing:
            wrong.append(f"line {one.line}: floor {here} imports {target} of floor {there}")
    assert not wrong


@pytest.mark.parametrize("module", FILES)
def test_names_for_the_type_checker_come_from_no_other_wing(module: str) -> None:
    wings = {SERVICE_WING, WEB_WING}
    here = floor(module)
    others = [target for target, _ in edges(module) if floor(target) in wings - {here}]
    assert here not in wings or not others


def test_there_is_no_circle_at_module_level() -> None:
    graph = {
        module: {target for target, one in edges(module) if not one.typing and not one.lazy}
        for module in FILES
    }
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"these import each other: {error.args[1]}")
    assert len(order) == len(FILES)


def importers(target: str) -> set[str]:
    """Modules of ours that import this name, or something in it."""
    return {
        module
        for module, found in IMPORTS.items()
        for one in found
        if one.target == target or one.target.startswith(f"{target}.")
    }


def test_settings_are_read_in_one_place() -> None:
    """Everything else gets typed and checked values from ``conf``.

    ``checks`` reads Django's own settings, to warn of an SQLite database that would lock up, for
    example: those are no settings of ours, so ``conf`` has no business with them.
    """
    assert importers("django.conf") == {"conf", "checks"}
    read = {
        node.attr
        for node in ast.walk(ast.parse(FILES["checks"].read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "settings"
    }
    assert read == {"DATABASES", "USE_TZ"}


def test_the_reactor_is_imported_inside_functions_only() -> None:
    early = [
        f"{module}:{one.line}"
        for module, found in IMPORTS.items()
        for one in found
        if one.target in NEVER_AT_MODULE_LEVEL and not one.lazy
    ]
    assert not early


def test_pikas_adapter_for_twisted_is_known_to_one_module() -> None:
    """It is deprecated in pika 1.5 and leaves in 2.0."""
    assert importers("pika.adapters.twisted_connection") == {"service.protocol"}


@pytest.mark.parametrize("package", ["twisted", "txaio"])
def test_what_a_web_process_loads_imports_neither_twisted_nor_txaio(package: str) -> None:
    below = {name for name in FILES if (floor(name) or 0) in (0, 1, 2, WEB_WING)}
    assert not importers(package) & below


def test_execution_knows_no_reactor() -> None:
    assert not importers("twisted.internet.reactor") & {"execution", "task_logging", "consumer"}


def test_a_django_process_that_publishes_has_no_twisted_in_it() -> None:
    """Told by a process of its own: also nothing that we import may bring it in."""
    program = (
        "import sys, django; django.setup()\n"
        "import carrot_twisted.publisher, carrot_twisted.utilities, carrot_twisted.sending\n"
        "import carrot_twisted.archive, carrot_twisted.showing\n"
        "carrot_twisted.publish, carrot_twisted.consume\n"
        "from django.core.management import call_command\n"
        "call_command('check')\n"
        "print(sorted({m.partition('.')[0] for m in sys.modules} & {'twisted', 'txaio', 'zope'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=PACKAGE.parent,
        env={"DJANGO_SETTINGS_MODULE": "tests.settings", "PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
