# SPDX-License-Identifier: Apache-2.0
"""The project. It uses what both versions have."""
