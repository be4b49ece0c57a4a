"""A call becomes a row and a message.

Every call goes through `enqueue`, or through `bulk` for many of one task; `api` is for NetBox code. `describe` makes
the call of what the caller gave, `admission` decides whether it may run now, `rows` makes the row, `publish` the
message. `used` and `replace` say when a call gets a row that exists. `control` cancels runs and runs them again.
"""
