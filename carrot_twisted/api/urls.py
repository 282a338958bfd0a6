# SPDX-License-Identifier: Apache-2.0
"""The addresses of the JSON API, which ``carrot_twisted.urls`` has below ``api/``."""

from __future__ import annotations

from django.urls import path

from carrot_twisted.api import control, flows, message_logs, scheduled_tasks
from carrot_twisted.api.description import Description
from carrot_twisted.api.endpoint import endpoint

urlpatterns = [
    path(
        "message-logs/published/",
        endpoint(message_logs.PublishedList),
        name="published-messagelog",
    ),
    path("message-logs/failed/", endpoint(message_logs.FailedList), name="failed-messagelog"),
    path(
        "message-logs/completed/",
        endpoint(message_logs.CompletedList),
        name="completed-messagelog",
    ),
    path("message-logs/purge/", endpoint(message_logs.Purge), name="purge-messagelog"),
    path("message-logs/requeue/", endpoint(message_logs.Requeue), name="requeue-messagelog"),
    path("message-logs/<str:pk>/", endpoint(message_logs.Detail), name="messagelog"),
    path("message-logs/<str:pk>/cancel/", endpoint(message_logs.Cancel), name="cancel-messagelog"),
    path("message-logs/<str:pk>/run/", endpoint(message_logs.Run), name="run-messagelog"),
    path("flows/<str:pk>/", endpoint(flows.Detail), name="carrot-api-flow"),
    path("flows/<str:pk>/cancel/", endpoint(flows.Cancel), name="carrot-api-flow-cancel"),
    path("scheduled-tasks/", endpoint(scheduled_tasks.Collection), name="scheduledtasks"),
    path(
        "scheduled-tasks/task-choices/",
        endpoint(scheduled_tasks.TaskChoices),
        name="scheduledtask-choices",
    ),
    path(
        "scheduled-tasks/validate-args/",
        endpoint(scheduled_tasks.ValidateArgs),
        name="scheduledtask-validate-args",
    ),
    path("scheduled-tasks/<str:pk>/", endpoint(scheduled_tasks.Detail), name="scheduledtask"),
    path("scheduled-tasks/<str:pk>/run/", endpoint(scheduled_tasks.Run), name="run-scheduledtask"),
    path("queues/", endpoint(control.Queues), name="carrot-api-queues"),
    path("queues/<path:name>/pause/", endpoint(control.Pause), name="carrot-api-queue-pause"),
    path("queues/<path:name>/resume/", endpoint(control.Resume), name="carrot-api-queue-resume"),
    path("queues/<path:name>/purge/", endpoint(control.PurgeQueue), name="carrot-api-queue-purge"),
    path("workers/", endpoint(control.Workers), name="carrot-api-workers"),
    path("workers/<str:name>/quiet/", endpoint(control.Quiet), name="carrot-api-worker-quiet"),
    path(
        "workers/<str:name>/unquiet/", endpoint(control.Unquiet), name="carrot-api-worker-unquiet"
    ),
    path("workers/<str:name>/stop/", endpoint(control.Stop), name="carrot-api-worker-stop"),
    path("schema/", endpoint(Description), name="carrot-api-schema"),
]
