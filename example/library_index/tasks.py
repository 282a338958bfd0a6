# SPDX-License-Identifier: Apache-2.0
"""The work that is done by ``twistd carrot``: plain functions, one call for each message."""

from __future__ import annotations

import ast
import logging
import threading
import warnings
from typing import TypedDict

from library_index import source_tree
from library_index.models import Module

# Lines that a task logs are kept in its MessageLog.
logger = logging.getLogger(__name__)

# Old spellings in the files, such as "\d", make ast.parse warn; that is not our news. Said once
# for the process, because warnings.catch_warnings is not safe where tasks run side by side.
warnings.filterwarnings("ignore", category=SyntaxWarning)

# Tasks of one service run in threads: what they share, they guard. Python 3.11 counts the depth
# of all trees under construction together; two at a time can end in "SystemError: AST constructor
# recursion depth mismatch". Parsing holds Python's own lock anyway, so this one costs no time.
parsing = threading.Lock()


class Numbers(TypedDict):
    """What is counted in a source file; see ``Module``."""

    lines: int
    definitions: int
    imports: int
    documented: float


def index_file(relative_path: str) -> Numbers:
    """Count what is in one file of the source tree, and store it.

    A task may run a second time for the same message, for example after a power cut. This one
    may: it replaces the row of its file, it does not add another.

    Raises:
        SyntaxError: the file is not valid Python. The task fails, with the traceback in its log.
    """
    numbers = count(source_tree.read(relative_path), relative_path)
    Module.objects.update_or_create(name=relative_path, defaults=numbers)
    logger.info(
        "%s: %d definitions and %d imports in %d lines, %.0f%% documented",
        relative_path,
        numbers["definitions"],
        numbers["imports"],
        numbers["lines"],
        100 * numbers["documented"],
    )
    return numbers


def count(source: bytes, name: str) -> Numbers:
    """The numbers of one source file; ``name`` is for the error message."""
    # From bytes, the parser finds the encoding as Python does when it runs the file.
    with parsing:
        module = ast.parse(source, filename=name)
    nodes = list(ast.walk(module))
    definitions = [
        node
        for node in nodes
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    ]
    imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    documentable = [module, *definitions]
    documented = [node for node in documentable if ast.get_docstring(node, clean=False)]
    return {
        "lines": len(source.splitlines()),
        "definitions": len(definitions),
        "imports": len(imports),
        "documented": len(documented) / len(documentable),
    }
