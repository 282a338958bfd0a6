# SPDX-License-Identifier: Apache-2.0
"""For those who run the service by ``manage.py``."""
