"""Everything about PostgreSQL: connections, JSON, and the state machine of runs, the only writer of a run's status.

`database` has the connections, `lifecycle` the transitions of a run, `payload` the JSON, and `recorder` (with
`progress`) the writer of logs and progress. The other modules serve these, or define what rows, models and messages
have in common.
"""
