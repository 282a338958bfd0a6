# SPDX-License-Identifier: Apache-2.0
"""A project whose processes are of two versions of the package at the same time."""
