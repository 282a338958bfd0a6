# SPDX-License-Identifier: Apache-2.0
"""URLs for a service that serves the monitor by itself (``--web``), instead of the project's.

The monitor is at ``/``. The pages to log in and out are where ``LOGIN_URL`` says, for redirects of
Django's go there.
"""

from __future__ import annotations

from django.contrib.auth import views
from django.urls import include, path

from carrot_twisted import conf

urlpatterns = [
    path(
        conf.login_path(),
        views.LoginView.as_view(template_name="carrot_twisted/login.html", next_page="/"),
        name="login",
    ),
    path("logout/", views.LogoutView.as_view(next_page="login"), name="logout"),
    path("", include("carrot_twisted.urls")),
]
