# SPDX-License-Identifier: Apache-2.0
"""Each module here is a command of ``manage.py``."""
