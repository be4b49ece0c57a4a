"""Workflows: the signatures inside of a message (`canvas`), and the runs that have a root in common (`family`).

`requests` loads what depends on a run from its row.
"""
