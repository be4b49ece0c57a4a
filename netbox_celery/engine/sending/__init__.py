"""A call becomes a row and a message.

Every call goes through `enqueue`, or through `bulk` for many calls of one task; `api` is for NetBox code. `describe`
builds the call from what the caller passes, `admission` decides whether it may run now, `rows` builds the row, and
`publish` sends the message. `used` and `replace` decide when a call gets an existing row. `control` cancels runs and
runs them again.
"""
