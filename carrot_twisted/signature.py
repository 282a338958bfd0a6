# SPDX-License-Identifier: Apache-2.0
"""A call of a task in a flow, of which the first argument may be still to come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from carrot_twisted import task_options, task_paths
from carrot_twisted.exceptions import InvalidMessage
from carrot_twisted.models import MessageLog

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from carrot_twisted.task_options import PublishOptions


class Signature:
    """A task with its arguments, as a part of a flow; see ``flows.chain``.

    Except in the first step, the result of the step before comes as the first argument, and those
    that are given here follow it. In a ``Message`` nothing comes before them.

    Args:
        task: dotted path of the function.
        args: positional arguments, JSON values.
        kwargs: keyword arguments, JSON values.
        options: how it is published.

    Raises:
        InvalidMessage, CarrotConfigException: see ``create_message``.
    """

    __slots__ = ("_args", "_kwargs", "row")

    def __init__(
        self,
        task: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        options: PublishOptions | None = None,
    ) -> None:
        # A worker looks for it there.
        task_paths.resolve_task(task)
        check_not_unique(task)
        self._args = tuple(args)
        self._kwargs = dict(kwargs or {})
        self.row = MessageLog.checked(task, None, None, "", None, self._args, self._kwargs, options)

    def check(self, *, takes_result: bool) -> None:
        """Whether the task takes these arguments, after a result if one comes first.

        Raises:
            InvalidMessage: it does not.
        """
        path = self.row.task
        declared = task_options.declared(path)
        try:
            if declared is not None:
                taken = declared.signature
            else:
                function = task_paths.resolve_task(path)
                taken = task_paths.signature_of(task_paths.standard_task(path) or function)
        except (TypeError, ValueError):
            # Such as some functions of C have: its run will tell.
            return
        try:
            taken.bind(*([None] if takes_result else []), *self._args, **self._kwargs)
        except TypeError as error:
            first = "the result of the step before, then " if takes_result else ""
            raise InvalidMessage(
                f"{path} does not take {first}these arguments: {error}. A message instead of a "
                "signature gets no result."
            ) from None


def check_not_unique(task: str) -> None:
    """Only tasks that are not ``unique`` can be parts of a flow: which flow would go on by them?

    Raises:
        InvalidMessage: this one is.
    """
    declared = task_options.declared(task)
    if declared is not None and declared.options.unique:
        raise InvalidMessage(
            f"{task} is unique, so it cannot be a part of a flow: of two flows only one would get "
            "it. Let a plain task of the flow publish it."
        )
