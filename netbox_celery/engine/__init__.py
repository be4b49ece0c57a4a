"""From a call to its recorded outcome, in the order in which data flows.

A call becomes a row and a message in `enqueue`, a worker claims the row in `lifecycle` and writes its log through the
`recorder`; Celery's end states come back through `backend` and `signals`. What dead workers leave is found by
`presence` and `sweep`. Nothing in here knows of views, tables, forms or REST.
"""
