"""PostgreSQL: connections, JSON, and the state machine of runs, which is the only writer of a status.

`database` has the connections, `lifecycle` the transitions of a run, `payload` the JSON between Celery and PostgreSQL.
The rest serves these, or is what rows, models and messages have in common.
"""
