# SPDX-License-Identifier: Apache-2.0
"""A Django project of which there can be much: queues, handlers, schedules, rows."""
