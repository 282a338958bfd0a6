# SPDX-License-Identifier: Apache-2.0
"""The monitor's addresses: ``path("carrot/", include("carrot_twisted.urls"))``, wherever you like.

Names are django-carrot's where it has them.
"""

from __future__ import annotations

from django.urls import path

from carrot_twisted.monitor import assets
from carrot_twisted.monitor.overview import Overview
from carrot_twisted.monitor.page import page
from carrot_twisted.monitor.task_list import TaskList

urlpatterns = [
    path("", page(Overview), name="carrot-monitor"),
    path("tasks/", page(TaskList), name="carrot-tasks"),
    path("assets/<slug:digest>/<str:name>", assets.serve, name="carrot-asset"),
]
