# SPDX-License-Identifier: Apache-2.0
"""A tiny Django project with Celery and django-celery-results."""
