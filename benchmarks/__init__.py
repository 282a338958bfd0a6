# SPDX-License-Identifier: Apache-2.0
"""How fast tasks are published and drained, beside Celery in the same run. See README.md."""
