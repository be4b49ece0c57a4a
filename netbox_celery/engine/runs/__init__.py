"""A worker runs a task: it claims the row, runs the body as a user, writes its log, and records the end.

`claim` comes before the body, `tracked` is what the body sees of its run, and `ending` records how the run ends.
`reports` writes the ends that a worker's parent observes for the runs of its children.
"""
