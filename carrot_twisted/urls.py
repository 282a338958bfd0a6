# SPDX-License-Identifier: Apache-2.0
"""The monitor's addresses: ``path("carrot/", include("carrot_twisted.urls"))``, wherever you like.

Names are django-carrot's where it has them.
"""

from __future__ import annotations

from django.urls import include, path

from carrot_twisted.monitor import assets
from carrot_twisted.monitor.archive_page import (
    ArchivePage,
    DeleteAllArchived,
    DeleteArchived,
    ReplayArchived,
)
from carrot_twisted.monitor.broker_look import BrokerLook
from carrot_twisted.monitor.many_tasks import MatchingTasks, SelectedTasks
from carrot_twisted.monitor.operator_actions import OperatorActions
from carrot_twisted.monitor.overview import Overview
from carrot_twisted.monitor.page import page
from carrot_twisted.monitor.queue_list import Pause, Purge, QueueList, Resume
from carrot_twisted.monitor.schedule_actions import (
    ScheduleDelete,
    ScheduleOff,
    ScheduleOn,
    ScheduleRun,
)
from carrot_twisted.monitor.schedule_list import ScheduleList
from carrot_twisted.monitor.schedule_page import ScheduleEdit, ScheduleNew, SchedulePage
from carrot_twisted.monitor.task_actions import TaskCancel, TaskDelete, TaskRequeue, TaskRun
from carrot_twisted.monitor.task_list import TaskList
from carrot_twisted.monitor.task_page import TaskLog, TaskPage
from carrot_twisted.monitor.worker_list import Quiet, Stop, Unquiet, WorkerList

urlpatterns = [
    path("", page(Overview), name="carrot-monitor"),
    path("tasks/", page(TaskList), name="carrot-tasks"),
    path("tasks/selected/<slug:deed>/", page(SelectedTasks), name="carrot-tasks-selected"),
    path("tasks/matching/<slug:deed>/", page(MatchingTasks), name="carrot-tasks-matching"),
    path("tasks/<uuid:pk>/", page(TaskPage), name="carrot-task"),
    path("tasks/<uuid:pk>/log.txt", page(TaskLog), name="carrot-task-log"),
    path("tasks/<uuid:pk>/requeue/", page(TaskRequeue), name="carrot-task-requeue"),
    path("tasks/<uuid:pk>/run/", page(TaskRun), name="carrot-task-run"),
    path("tasks/<uuid:pk>/cancel/", page(TaskCancel), name="carrot-task-cancel"),
    path("tasks/<uuid:pk>/delete/", page(TaskDelete), name="carrot-task-delete"),
    path("schedules/", page(ScheduleList), name="carrot-schedules"),
    path("schedules/new/", page(ScheduleNew), name="carrot-schedule-new"),
    path("schedules/<int:pk>/", page(SchedulePage), name="carrot-schedule"),
    path("schedules/<int:pk>/edit/", page(ScheduleEdit), name="carrot-schedule-edit"),
    path("schedules/<int:pk>/run/", page(ScheduleRun), name="carrot-schedule-run"),
    path("schedules/<int:pk>/on/", page(ScheduleOn), name="carrot-schedule-on"),
    path("schedules/<int:pk>/off/", page(ScheduleOff), name="carrot-schedule-off"),
    path("schedules/<int:pk>/delete/", page(ScheduleDelete), name="carrot-schedule-delete"),
    path("queues/", page(QueueList), name="carrot-queues"),
    path("queues/at-the-broker/", page(BrokerLook), name="carrot-queues-broker"),
    path("queues/<path:name>/pause/", page(Pause), name="carrot-queue-pause"),
    path("queues/<path:name>/resume/", page(Resume), name="carrot-queue-resume"),
    path("queues/<path:name>/purge/", page(Purge), name="carrot-queue-purge"),
    path("queues/<path:name>/archive/", page(ArchivePage), name="carrot-archive"),
    path("queues/<path:name>/archive/replay/", page(ReplayArchived), name="carrot-archive-replay"),
    path("queues/<path:name>/archive/delete/", page(DeleteArchived), name="carrot-archive-delete"),
    path(
        "queues/<path:name>/archive/delete-all/",
        page(DeleteAllArchived),
        name="carrot-archive-delete-all",
    ),
    path("workers/", page(WorkerList), name="carrot-workers"),
    path("workers/<str:name>/quiet/", page(Quiet), name="carrot-worker-quiet"),
    path("workers/<str:name>/unquiet/", page(Unquiet), name="carrot-worker-unquiet"),
    path("workers/<str:name>/stop/", page(Stop), name="carrot-worker-stop"),
    path("actions/", page(OperatorActions), name="carrot-actions"),
    path("api/", include("carrot_twisted.api.urls")),
    path("assets/<slug:digest>/<str:name>", assets.serve, name="carrot-asset"),
]
