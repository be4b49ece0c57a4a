"""The catalogue: which tasks exist, and which arguments and queues people may give them.

`discovery` imports the task modules, `registry` lists and describes the tasks, `checking` (with `annotations`) checks
arguments, `queues` checks queues, `commands` names the tasks of management commands, and `strategies` finds tasks that
cannot be tracked.
"""
