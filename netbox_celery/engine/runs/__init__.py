"""A worker runs a task: it claims the row, runs the body under a user, writes its log, and records the outcome.

`claim` comes before the body, `tracked` is what the body sees of its run, `outcome` is its end. `reports` are the
outcomes that a worker's parent reports of runs of its children.
"""
