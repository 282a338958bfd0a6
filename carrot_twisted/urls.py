# SPDX-License-Identifier: Apache-2.0
"""The monitor's addresses: ``path("carrot/", include("carrot_twisted.urls"))``, wherever you like.

Names are django-carrot's where it has them.
"""

from __future__ import annotations

from django.urls import path

from carrot_twisted.monitor import assets
from carrot_twisted.monitor.page import page
from carrot_twisted.monitor.task_actions import TaskCancel, TaskDelete, TaskRequeue
from carrot_twisted.monitor.task_list import TaskList
from carrot_twisted.monitor.task_page import TaskLog, TaskPage

urlpatterns = [
    path("", page(TaskList), name="carrot-monitor"),
    path("tasks/", page(TaskList), name="carrot-tasks"),
    path("tasks/<uuid:pk>/", page(TaskPage), name="carrot-task"),
    path("tasks/<uuid:pk>/log.txt", page(TaskLog), name="carrot-task-log"),
    path("tasks/<uuid:pk>/requeue/", page(TaskRequeue), name="carrot-task-requeue"),
    path("tasks/<uuid:pk>/cancel/", page(TaskCancel), name="carrot-task-cancel"),
    path("tasks/<uuid:pk>/delete/", page(TaskDelete), name="carrot-task-delete"),
    path("assets/<slug:digest>/<str:name>", assets.serve, name="carrot-asset"),
]
