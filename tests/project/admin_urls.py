# SPDX-License-Identifier: Apache-2.0
"""The addresses of a project with Django's admin."""

from __future__ import annotations

from django.contrib import admin
from django.urls import path

urlpatterns = [path("admin/", admin.site.urls)]
