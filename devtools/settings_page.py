# SPDX-License-Identifier: Apache-2.0
"""Writes the tables of docs/settings.md from ``conf.py``: ``python3 run.py docs`` does.

Keys, defaults and meanings are those that stand there, the meanings as comments; what a value may
be is what ``manage.py check`` says of one that it cannot be.
"""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING, Any

import django
from django.test import override_settings

from devtools.environment import TOP

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PAGE = TOP / "docs" / "settings.md"
SOURCE = TOP / "carrot_twisted" / "conf.py"
#: Of values that have a hint of their own, or none.
_KINDS = {
    "default_broker": "a URL or a dictionary, see [brokers](#brokers)",
    "host": "a URL or a dictionary, see [brokers](#brokers); `None`: `default_broker`",
    "name": "a text of 1 to 255 bytes without line ends",
    "retention": "a dictionary of states to days, or `None`",
    "handlers": "a dictionary",
}
_UNITS = ((1024 * 1024, "MiB"), (1024, "Ki"))


def written() -> str:
    """The page with the tables of the code as it is. Django is set up."""
    text = PAGE.read_text(encoding="utf-8")
    for name, wrong in (("DEFAULTS", _wrong_setting), ("QUEUE_DEFAULTS", _wrong_queue)):
        table = _table(name, wrong)
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{table}\n{end}{rest.partition(end)[2]}"
    return text


def _wrong_setting(key: str) -> Mapping[str, Any]:
    return {key: object()}


def _wrong_queue(key: str) -> Mapping[str, Any]:
    return {"queues": [{"name": "default", key: object()}]}


def _table(name: str, wrong: Callable[[str], Mapping[str, Any]]) -> str:
    from carrot_twisted import conf

    defaults: Mapping[str, Any] = getattr(conf, name)
    meanings = _meanings(name)
    lines = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for key, default in defaults.items():
        shown = "" if key == "name" else _shown(default)
        cells = (f"`{key}`", _kind(key, wrong(key)), shown, meanings[key])
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _kind(key: str, setting: Mapping[str, Any]) -> str:
    """What a value may be, in the words of the hint for one that makes no sense."""
    if key in _KINDS:
        return _KINDS[key]
    from carrot_twisted import conf

    with override_settings(CARROT=setting):
        (problem,) = conf.problems()
    return problem.hint.removeprefix("It must be ").removesuffix(".")


def _shown(default: object) -> str:
    if isinstance(default, float):
        return f"{default:g}"
    if isinstance(default, int) and not isinstance(default, bool):
        for unit, word in _UNITS:
            if default and not default % unit:
                return f"{default // unit} {word}"
        return str(default)
    return f"`{default!r}`".replace("'", '"')


def _meanings(name: str) -> dict[str, str]:
    """Of each key of that dictionary in the source, the comment above it."""
    source = SOURCE.read_text(encoding="utf-8")
    lines = source.splitlines()
    (dictionary,) = (
        node.value
        for node in ast.parse(source).body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name
    )
    assert isinstance(dictionary, ast.Dict)
    found = {}
    for key in dictionary.keys:
        assert isinstance(key, ast.Constant)
        words: list[str] = []
        number = key.lineno - 2
        while lines[number].lstrip().startswith("#"):
            words.insert(0, lines[number].strip().removeprefix("#").strip())
            number -= 1
        found[str(key.value)] = _as_markdown(" ".join(words))
    return found


def _as_markdown(text: str) -> str:
    """A comment for readers of the page: names in its quotes, pages as links."""
    return re.sub(r"docs/(([\w-]+)\.md)", r"[\2](\1)", text)


def main() -> None:
    """Write it."""
    django.setup()
    PAGE.write_text(written(), encoding="utf-8")


if __name__ == "__main__":
    main()
