# SPDX-License-Identifier: Apache-2.0
"""A Django project with the monitor and with the admin's list of Celery's results."""
