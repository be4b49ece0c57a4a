"""A call becomes a row and a message.

`enqueue` is where every call comes through; `bulk` sends many at once, `api` is for NetBox code. `admission` decides
whether a call may run now, `rows` makes the row, `publish` the message. `control` cancels runs and runs them again.
"""
