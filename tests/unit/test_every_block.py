# SPDX-License-Identifier: Apache-2.0
"""Each code block of the pages is run by a test, or read by what it is written for.

Commands of ours are read by their own parsers. A block of another kind needs a test that runs it,
or compares it with what it tells of; RUN names that test. What nothing here can run stands in LEFT,
with the reason.
"""

from __future__ import annotations

import ast
import configparser
import json
import re
import shlex
from importlib import import_module
from importlib.metadata import metadata
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from django.core.management import get_commands, load_command_class
from django.utils.module_loading import import_string
from packaging.requirements import Requirement
from twisted.python.usage import UsageError
from twisted.scripts.twistd import ServerOptions  # type: ignore[attr-defined]

import run
from benchmarks import __main__ as benchmark
from benchmarks import options as benchmark_options
from carrot_twisted import command_line
from carrot_twisted.service_options import Options
from carrot_twisted.virtual_host import AMQP_PORT
from tests.chaos import options as chaos_options
from tests.pages import ALL_PAGES, TOP, Block, all_blocks, blocks, label, without_blocks
from tests.shell_script import commands
from tests.unit.test_recipes import DEPLOY, OBJECTS, SERVICE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

CALLBACKS = "acceptance/test_callbacks_page.py"
DOC_BLOCKS = "unit/test_doc_blocks.py"
DOCUMENTATION = "unit/test_docs.py"
GUIDES = "acceptance/test_migrating_pages.py"
HANDLERS = "acceptance/test_handlers_page.py"
OUTPUT = "unit/test_shown_output.py"
README = "acceptance/test_readme.py"
SYSTEMD = "integration/test_systemd.py"
#: For each page the files of tests that run blocks of it, or compare them with what they tell of,
#: by words in the block; "": these run all of them.
RUN: dict[str, dict[str, str]] = {
    "README.md": dict.fromkeys(
        (
            *("# myapp/tasks.py", "# settings.py", "# urls.py", "log = publish_message(greet"),
            *("log.refresh_from_db()", "publish_many("),
        ),
        README,
    ),
    "api.md": {"SessionStore": "unit/test_api.py", "ask": "unit/test_api.py"},
    "async.md": {"# myapp/tasks.py": DOC_BLOCKS, "in_reactor": DOC_BLOCKS},
    "callbacks.md": {
        **dict.fromkeys(("# consumer.py", "# send.py", "# saving.py", "# bounded.py"), CALLBACKS),
        **dict.fromkeys(("billing", "sys.exit", "twisted_consume", "PublishReturned"), CALLBACKS),
        "MessageLog.objects": DOC_BLOCKS,
        "[Unit]": SYSTEMD,
    },
    "commands.md": {"event: changed": OUTPUT, "1 problem": OUTPUT, "OK  ": OUTPUT},
    "consumers.md": {"ConsumerSet": "integration/test_consumer_hooks.py", "": DOC_BLOCKS},
    "delivery.md": {"PUBLISHED ->": OUTPUT},
    "deployment.md": {
        "# shop/settings.py": "integration/test_recipes.py",
        "pgbouncer": "integration/test_pgbouncer.py",
        "rabbitmqctl": "integration/test_recipes.py",
    },
    "django-tasks.md": {"": DOCUMENTATION},
    "example/README.md": {">>> ": "acceptance/test_example.py"},
    "flows.md": {"": DOCUMENTATION},
    "handlers.md": dict.fromkeys(
        ("@message_handler", "# settings.py", "# send.py", "row.is_task"), HANDLERS
    ),
    "health.md": {"$ curl": OUTPUT, "livenessProbe": "unit/test_recipes.py", "scrape": OUTPUT},
    "logs.md": {
        "TaskFields": "unit/test_log_fields.py",
        "service.relay": "unit/test_json_log.py",
        '{"time"': OUTPUT,
    },
    "long-tasks.md": {"": DOC_BLOCKS},
    "migrating-from-celery-message-consumer.md": {"# shop/handlers.py": GUIDES, "# sett": GUIDES},
    "migrating-from-celery.md": {"# after: ": DOCUMENTATION},
    "migrating-from-django-carrot.md": {
        "AdoptingConsumer": DOC_BLOCKS,
        "grep": "acceptance/test_migrating.py",
    },
    "migrating-from-fedora-messaging.md": {"# new_": GUIDES},
    "misbehaving-tasks.md": {"": DOCUMENTATION},
    "monitor.md": {"# urls.py": DOC_BLOCKS},
    "on-call.md": {"requeue": "acceptance/test_on_call.py"},
    "performance.md": {"": "integration/test_performance_page.py"},
    "reference.md": {"": DOC_BLOCKS},
    "retention.md": {"": DOC_BLOCKS},
    "scheduling.md": {"ScheduledTaskManager": "integration/test_scheduler.py", "": DOC_BLOCKS},
    "security.md": {"[Service]": SYSTEMD},
    "settings.md": {"DATABASES = {": README},
    "statistics.md": {"": DOC_BLOCKS},
    "systemd.md": {"systemctl": SYSTEMD, "[Service]": SYSTEMD, "# /etc/carrot/": SYSTEMD},
    "tasks.md": {"": DOCUMENTATION},
    "testing.md": {"": "unit/test_testing.py"},
    "tutorial.md": {"": "acceptance/test_tutorial.py"},
}
#: Settings of ours, wherever they are shown.
SETTINGS = re.compile(r"^CARROT = ", re.MULTILINE)
OTHERS_CODE = "for a package that is left, and is not installed here"
LEFT = {
    ("architecture.md", "web, shell, command"): "a drawing",
    ("migrating-from-celery.md", "# before: "): OTHERS_CODE,
    ("migrating-from-celery-message-consumer.md", "# before: shop/consumers.py"): OTHERS_CODE,
    ("migrating-from-fedora-messaging.md", "# before: "): OTHERS_CODE,
}


# How blocks are read, by their languages: each says whether that is all that can be done with them


def read_commands(block: Block) -> bool:
    """What a terminal is told."""
    found = commands(block.text)
    for words in found:
        if words[0] in PROGRAMS:
            PROGRAMS[words[0]](words[1:], block)
    return bool(found) and all(words[0] in PROGRAMS for words in found)


def read_dialogue(block: Block) -> bool:
    """Commands after a dollar sign, and what they print."""
    lines = re.findall(r"^\$ (.*)$", block.text, re.MULTILINE)
    read_commands(Block(block.page, block.line, "", "\n".join(lines)))
    return False


def read_directives(block: Block) -> bool:
    """What Sphinx puts there: docstrings of things that are there."""
    found = re.findall(r"^\.\. auto(\w+):: ([\w.]+)$", block.text, re.MULTILINE)
    for kind, path in found:
        assert import_module(path) if kind == "module" else import_string(path)
    return bool(found)


def read_ini(block: Block) -> bool:
    """A unit of systemd, a part of one, or a file for its EnvironmentFile."""
    if block.text.startswith("# /etc/carrot/"):
        for line in block.text.splitlines():
            # Quotes and backslashes mean something else to each who reads such files.
            assert re.fullmatch(r"#.*|[A-Z_]+=[^'\"\\]*\S", line), line
    else:
        parser = configparser.RawConfigParser(delimiters=["="])
        parser.read_string(block.text)
        assert parser.sections()
    return False


def read_yaml(block: Block) -> bool:
    assert isinstance(yaml.safe_load(block.text), dict)
    return False


def read_json(block: Block) -> bool:
    assert json.loads(block.text)
    return False


def read_nothing(block: Block) -> bool:
    assert block.text
    return False


LANGUAGES: dict[str, Callable[[Block], bool]] = {
    "": read_commands,
    "sh": read_commands,
    "console": read_dialogue,
    "{eval-rst}": read_directives,
    "ini": read_ini,
    "json": read_json,
    "yaml": read_yaml,
    "pycon": read_nothing,
    "python": read_nothing,
    "sql": read_nothing,
    "text": read_nothing,
}


# How command lines are read, by their programs


def read_python(words: Sequence[str], block: Block) -> None:
    match words:
        case ["manage.py", "index_stdlib"]:
            assert block.page == "example/README.md"
        case ["manage.py" | "example/manage.py", *rest]:
            read_manage(rest, block)
        case ["run.py", command, *rest]:
            read_run(command, rest)
        case ["-m", module, *_]:
            assert find_spec(module)
        case [script]:
            texts = blocks(TOP / block.page, "python")
            assert any(text.startswith(f"# {script}\n") for text in texts), script
        case _:
            pytest.fail(f"{block}: python {words}")


def read_manage(words: Sequence[str], block: Block) -> None:
    command, *rest = words
    parser = load_command_class(get_commands()[command], command).create_parser("manage.py", "")
    given = parser.parse_args(rest)
    if command == "shell":
        ast.parse(given.command or "")


def read_run(command: str, rest: Sequence[str]) -> None:
    assert command in run.COMMANDS
    match command, rest:
        case "test", [*paths]:
            assert all((TOP / path).exists() for path in paths)
        case "bench", ["--help"]:
            pass
        case "example", [run.KEEP]:
            pass
        case "chaos", _:
            chaos_options.parse(rest)
        case "bench", [part, *more] if part in benchmark.OTHERS:
            import_module(f"benchmarks.{part}.__main__")._parse(more)
        case "bench", _:
            benchmark_options.parse(rest)
        case _:
            assert not rest


def read_twistd(words: Sequence[str], block: Block) -> None:
    options: Any = ServerOptions()
    if words != ["--help"]:
        # Users of the pages are not known on this machine.
        options.parseOptions([re.sub("^(--[ug]id)=.*", r"\1=1", word) for word in words])
        assert options.subCommand == "carrot"


def read_carrot(words: Sequence[str], block: Block) -> None:
    if words[0] == "consume":
        Options().parseOptions(words[1:])
    else:
        command_line._parser().parse_args(words)


def read_pip(words: Sequence[str], block: Block) -> None:
    match words:
        case ["install", "-e", "."]:
            assert (TOP / "setup.py").exists()
        case ["install", wanted]:
            requirement = Requirement(wanted)
            extras = metadata("carrot-twisted").get_all("Provides-Extra") or []
            assert requirement.name == "carrot-twisted"
            assert requirement.extras <= {*extras}
        case _:
            pytest.fail(f"{block}: pip {words}")


def read_tox(words: Sequence[str], block: Block) -> None:
    assert words == ["run"]
    assert (TOP / "tox.ini").exists()


def read_kubectl(words: Sequence[str], block: Block) -> None:
    match words:
        case ["create", "secret", "generic", secret, *literals]:
            (container,) = SERVICE["spec"]["template"]["spec"]["containers"]
            assert container["envFrom"] == [{"secretRef": {"name": secret}}]
            used = re.findall(
                r'os\.environ\["(\w+)"\]', "".join(blocks(TOP / block.page, "python"))
            )
            assert literals == [f"--from-literal={variable}=…" for variable in used]
        case ["apply", *rest]:
            assert rest[::2] == ["-f"] * (len(rest) // 2)
            assert all((DEPLOY / "kubernetes" / file).exists() for file in rest[1::2])
        case ["wait", "--for=condition=complete", "--timeout=10m", job]:
            assert ("Job", job.removeprefix("job/")) in OBJECTS
        case _:
            pytest.fail(f"{block}: kubectl {words}")


def read_docker(words: Sequence[str], block: Block) -> None:
    assert words[:-1] == ["run", "--rm", "-p", f"{AMQP_PORT}:{AMQP_PORT}"]
    assert words[-1].partition(":")[0] == "rabbitmq"


PROGRAMS: dict[str, Callable[[Sequence[str], Block], None]] = {
    "python": read_python,
    "python3": read_python,
    "django-admin": read_manage,
    "twistd": read_twistd,
    "carrot": read_carrot,
    "docker": read_docker,
    "pip": read_pip,
    "tox": read_tox,
    "kubectl": read_kubectl,
}


# The tests


def runners_of(block: Block) -> list[str]:
    """The files of tests that run a block."""
    parts = RUN.get(label(TOP / block.page), {})
    found = [file for part, file in parts.items() if part in block.text]
    if block.language == "python" and SETTINGS.search(block.text):
        found.append(DOC_BLOCKS)
    return found


def is_left(block: Block) -> bool:
    page = label(TOP / block.page)
    return any(page == one and block.text.startswith(beginning) for one, beginning in LEFT)


@pytest.mark.parametrize("page", [one for one in ALL_PAGES if any(all_blocks(one))], ids=label)
def test_each_block_is_run_or_read(page: Path) -> None:
    for block in all_blocks(page):
        assert block.language in LANGUAGES, f"{block}: no test knows this language"
        try:
            whole = LANGUAGES[block.language](block)
        except (AssertionError, SystemExit, UsageError) as error:
            raise AssertionError(f"{block} is not understood") from error
        assert whole or runners_of(block) or is_left(block), f"{block}: no test runs it"


@pytest.mark.parametrize("page", ALL_PAGES, ids=label)
def test_blocks_are_fenced_so_that_they_are_found(page: Path) -> None:
    assert not re.search(r"\n\n {4,}\S", without_blocks(page))


def test_what_is_said_to_run_blocks_reads_their_page() -> None:
    for page in ALL_PAGES:
        found = [*all_blocks(page)]
        for part, file in RUN.get(label(page), {}).items():
            assert any(part in block.text for block in found), (page, part)
            text = (TOP / "tests" / file).read_text(encoding="utf-8")
            assert page.name in text or "import PAGE" in text, (page, file)
    assert RUN.keys() <= {label(page) for page in ALL_PAGES}


def test_what_is_left_is_still_there() -> None:
    left = [block for page in ALL_PAGES for block in all_blocks(page) if is_left(block)]
    assert len(left) == len(LEFT) + 1, "Celery's guide has two"
    assert not [block for block in left if runners_of(block)]


INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
OURS = re.compile(r"(?:python3?|manage\.py|twistd|carrot (?:publish|consume|record|replay)|pip) ")


def inline_commands(page: Path) -> Iterator[str]:
    """Commands of ours in the text that have options."""
    for text in INLINE.findall(without_blocks(page)):
        line = " ".join(text.split()).replace("=…", "=x").replace(" …", "")
        if OURS.match(line) and "--" in line:
            # Where no callback is named, what is told holds for each.
            yield re.sub("--callback$", "--callback=a:b", line)


@pytest.mark.parametrize("page", ALL_PAGES, ids=label)
def test_options_of_commands_in_the_text_are_there(page: Path) -> None:
    for line in inline_commands(page):
        program, *words = shlex.split(re.sub(r"^manage\.py ", "python manage.py ", line))
        try:
            PROGRAMS[program](words, Block(label(page), 0, "", line))
        except (AssertionError, SystemExit, UsageError) as error:
            raise AssertionError(f"not understood: {line}") from error


#: Where variables of the environment are read: by what is installed, by what contributors run, and
#: by units of systemd.
SOURCES = ("carrot_twisted", "systemd", "run.py", "devtools", "tests", "benchmarks", "example")


def test_variables_of_the_environment_are_read_somewhere() -> None:
    variable = re.compile(r"\b(?:CARROT|EXAMPLE)_[A-Z_]+\b")
    told = {
        name: label(page)
        for page in ALL_PAGES
        for name in variable.findall(page.read_text("utf-8"))
    }
    known: set[str] = set()
    for source in SOURCES:
        place = TOP / source
        for path in place.rglob("*") if place.is_dir() else [place]:
            if path.suffix in (".py", ".service"):
                known.update(variable.findall(path.read_text(encoding="utf-8")))
    assert {name: page for name, page in told.items() if name not in known} == {}
