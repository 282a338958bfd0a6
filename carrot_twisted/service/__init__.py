# SPDX-License-Identifier: Apache-2.0
"""The reactor's side: connections, deliveries, claims, threads, records."""
