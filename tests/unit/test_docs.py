# SPDX-License-Identifier: Apache-2.0
"""The documentation: its Python compiles, what it imports is there, and what it shows runs."""

from __future__ import annotations

import ast
import re
import runpy
import sys
from collections import Counter
from importlib import import_module
from importlib.util import find_spec
from inspect import isfunction
from typing import TYPE_CHECKING, Any

import pytest
from django.core.checks import run_checks

from carrot_twisted import (
    conf,
    flow_plan,
    flow_settling,
    records,
    task_options,
    task_paths,
    waiting,
)
from carrot_twisted.limits import limit_of
from carrot_twisted.message_log_set import INSERT_BATCH
from carrot_twisted.models import Flow, MessageLog
from carrot_twisted.service import process_end, reactor_watch, recycling, time_keeper
from tests.pages import PAGES, TOP, blocks, label

if TYPE_CHECKING:
    from pathlib import Path

    from carrot_twisted.testing import InMemory


def test_there_is_a_page_for_each_part() -> None:
    pages = {page.name for page in PAGES}
    assert {"consumers.md", "scheduling.md", "commands.md", "retention.md"} <= pages
    assert {"callbacks.md", "handlers.md", "security.md", "systemd.md"} <= pages
    assert (TOP / "docs" / "migrating-from-django-carrot.md") in PAGES


@pytest.mark.parametrize("page", PAGES, ids=label)
def test_its_python_compiles_and_imports_what_is_there(page: Path) -> None:
    for text in blocks(page, "python"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("carrot_"):
                module = import_module(node.module or "")
                missing = [one.name for one in node.names if not hasattr(module, one.name)]
                assert not missing, f"{node.module} has no {missing}"


def test_the_examples_of_limits_run_and_the_numbers_are_those_of_the_code(tmp_path: Path) -> None:
    page = TOP / "docs" / "misbehaving-tasks.md"
    limits: dict[str, float | None] = {}
    for text in blocks(page, "python"):
        example = tmp_path / "example.py"
        example.write_text(text)
        names = runpy.run_path(str(example))
        limits |= {n: limit_of(one, None) for n, one in names.items() if isfunction(one)}
    assert limits == {"build_report": 30, "convert": 600, "time_limit": None}
    text = " ".join(page.read_text(encoding="utf-8").split())
    for number in (
        f"does not end then, within {time_keeper.STUCK_AFTER:g} s",
        f"It has {time_keeper.STUCK_AFTER:g} s for that",
        f"hold up its end by no more than {process_end.LAST_MOMENT:g} s",
        f"`max_crashes` ({conf.DEFAULTS['max_crashes']})",
        f"`lease` ({conf.DEFAULTS['lease']:g} s)",
        f"After {reactor_watch.SILENCE:g} to {reactor_watch.SILENCE + reactor_watch.INTERVAL:g} s",
    ):
        assert number in text
    assert (time_keeper.REPEAT, recycling.INTERVAL) == (1, 1), "every second"
    assert (recycling.MAX_STUCK + 1, records.SUSPECT_CRASHES) == (5, 2), "the fifth; two workers"


@pytest.mark.django_db
def test_the_examples_of_tasks_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    """Those for myapp/tasks.py are that module; the others publish what is in it."""
    page = TOP / "docs" / "tasks.md"
    texts = list(blocks(page, "python"))
    module = [text for text in texts if text.startswith("# myapp/tasks.py")]
    (tmp_path / "myapp").mkdir()
    (tmp_path / "myapp" / "tasks.py").write_text("\n\n".join(module))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "myapp", raising=False)
    names: dict[str, Any] = {}
    exec(next(text for text in texts if "CARROT" in text), names)  # noqa: S102
    queues = [{"name": name} for name in ("default", "mail", "other")]
    settings.CARROT = {**names["CARROT"], "queues": queues, "task_modules": ["myapp.tasks"]}
    for text in texts:
        if text not in module:
            exec(text, names)  # noqa: S102
    assert not [m for m in run_checks() if (m.id or "").startswith("carrot_twisted.E")]
    paths = MessageLog.objects.values_list("task", flat=True)
    assert Counter(path.rpartition(".")[2] for path in paths) == {
        "greet": 5,
        "send_mail": 2,
        "refresh": 2,
        "import_contacts": 1,
    }
    text = page.read_text(encoding="utf-8")
    for told, number in (
        ("until the first retry, {:g};", task_options.RETRY_BACKOFF),
        ("`retry_backoff_max`, {:g}.", task_options.RETRY_BACKOFF_MAX),
        ("`retry_jitter`, {:g},", task_options.RETRY_JITTER),
        ("`max_retries` or {:g} times", task_options.MAX_RETRIES),
        ("end after {:g} characters", task_options.MAX_KEY),
    ):
        assert told.format(number) in text
    for name in conf.TASK_DEFAULTS:
        assert f"`{name}`" in text.partition("## Defaults of a project")[2]


@pytest.mark.django_db
def test_a_task_of_celerys_is_published_as_the_guide_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    (tmp_path / "billing").mkdir()
    for text in blocks(TOP / "docs" / "migrating-from-celery.md", "python"):
        # Another test has modules of the shop's.
        text = text.replace("shop", "billing")
        place, _, path = text.partition("\n")[0].removeprefix("# ").partition(": ")
        if place == "after":
            (tmp_path / path).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    settings.CARROT = {"queues": [{"name": "mail"}], "task_modules": ["billing.tasks"]}
    import_module("billing.paying").pay(7)
    row = MessageLog.objects.get()
    assert (row.task, row.queue, row.positionals) == ("billing.tasks.send_invoice", "mail", (7,))


@pytest.mark.django_db
def test_the_examples_of_flows_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: Any,
    carrot: InMemory,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """That for myapp/tasks.py is that module; what the others publish runs after each."""
    page = TOP / "docs" / "flows.md"
    texts = list(blocks(page, "python"))
    (module,) = [text for text in texts if text.startswith("# myapp/tasks.py")]
    (tmp_path / "myapp").mkdir()
    (tmp_path / "myapp" / "tasks.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("myapp", "myapp.tasks"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    task_paths._resolved.clear()
    queues = [{"name": name} for name in ("default", "mail")]
    settings.CARROT = {"queues": queues, "task_modules": ["myapp.tasks"]}
    names: dict[str, Any] = {}
    for text in texts:
        if text is not module:
            exec(text, names)  # noqa: S102
            carrot.run_pending()
    flows = Flow.objects.order_by("pk")
    assert [flow.result() for flow in flows] == [
        "tidy",
        {"album": 7, "photos": 3},
        ["tidy", "tidy"],
        ["COMPLETED", "COMPLETED"],
    ]
    assert flows[0].results(2) == {"album": 7, "title": "A page"}
    said = capsys.readouterr().out
    assert said.startswith("3\nCOMPLETED 3\n")
    assert "myapp.tasks.fetch 2 of 2" in said
    told = " ".join(page.read_text(encoding="utf-8").split())
    assert f"{INSERT_BATCH:,} rows at a time" in told
    assert (waiting.FIRST, waiting.LONGEST, flow_settling.AGE) == (0.01, 1, 10)
    assert all(f'| `"{policy}"' in told for policy in flow_plan.POLICIES)


@pytest.mark.django_db
def test_the_examples_of_djangos_own_tasks_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    texts = list(blocks(TOP / "docs" / "django-tasks.md", "python"))
    if find_spec("django.tasks") is None:
        # As the page says for Django 5.2.
        texts = [text.replace("django.tasks", "django_tasks") for text in texts]
    module = [text for text in texts if text.startswith("# shop/tasks.py")]
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "tasks.py").write_text("\n\n".join(module))
    monkeypatch.syspath_prepend(tmp_path)
    names: dict[str, Any] = {}
    exec(texts[0], names)  # noqa: S102
    settings.TASKS = names["TASKS"]
    assert set(names["INSTALLED_APPS"]) <= set(settings.INSTALLED_APPS)
    for text in texts[1:]:
        if text not in module:
            exec(text, names)  # noqa: S102
    settings.CARROT = names["CARROT"]
    assert not [m for m in run_checks() if (m.id or "").startswith("carrot_twisted.E")]
    rows = {row.task: row for row in MessageLog.objects.all()}
    assert rows.keys() == {"shop.tasks.invoice", "shop.tasks.thank"}
    shop = import_module("shop.tasks")
    # The numbers of the page.
    numbers = [shop.thank.using(priority=n).enqueue("Bob").id for n in (-100, 0, 100)]
    assert [MessageLog.objects.get(pk=key).priority for key in numbers] == [0, 5, 10]
    assert shop.deliver.enqueue(1).id == shop.deliver.enqueue(1).id
    settings.TASKS = names["TASKS"]
    assert shop.invoice.enqueue(42, copies=2).return_value == {"order": 42, "pages": 4}


def test_every_page_is_reached_from_the_index_and_that_from_the_readme() -> None:
    assert "(docs/index.md)" in PAGES[0].read_text(encoding="utf-8")
    index = (TOP / "docs" / "index.md").read_text(encoding="utf-8")
    lost = [page.name for page in PAGES[1:] if f"({page.name})" not in index]
    assert lost == ["index.md"]


@pytest.mark.parametrize("page", PAGES[1:], ids=label)
def test_its_first_sentence_says_what_it_is_for(page: Path) -> None:
    """A heading, and then a paragraph: neither a table nor a block, nor another heading."""
    heading, blank, text = page.read_text(encoding="utf-8").split("\n", 2)
    assert heading.startswith("# ")
    assert (blank, text[0] in "|`#-!<") == ("", False)


def test_the_lines_of_the_log_that_are_explained_are_those_of_the_code() -> None:
    page = (TOP / "docs" / "on-call.md").read_text(encoding="utf-8")
    table = page.partition("## What the log says")[2]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    quoted = [text for cell in cells for text in re.findall(r"`([^`]+)`", cell)]
    said = "\n".join(
        node.value
        for path in sorted((TOP / "carrot_twisted").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    # Values stand in braces; some lines are made of two pieces.
    said = re.sub(r"\{[^}]*\}", "…", said)
    pieces = [piece.strip() for text in quoted for piece in text.split("…")]
    assert len(quoted) > 15
    assert [piece for piece in pieces if piece not in said] == []
