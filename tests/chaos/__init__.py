# SPDX-License-Identifier: Apache-2.0
"""The chaos run: services, publishers, broker and database under faults, and who checks it all."""
