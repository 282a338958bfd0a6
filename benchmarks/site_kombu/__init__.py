# SPDX-License-Identifier: Apache-2.0
"""A tiny Django project whose Celery worker consumes messages of others by a step of its own.

The design is celery-message-consumer's, which cannot be imported with a current Python; see
README.md.
"""
