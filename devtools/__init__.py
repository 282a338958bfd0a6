# SPDX-License-Identifier: Apache-2.0
"""Tools of this repository: private servers and the preparation of a machine.

A plain package beside the product. It is not part of the wheel, and it needs nothing but the
standard library: `run.py` uses it before anything is installed.
"""
