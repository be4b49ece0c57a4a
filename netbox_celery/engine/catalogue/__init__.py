"""Which tasks there are (`discovery` finds them, `registry` has them), and what people may give them.

`checking` is about arguments, `queues` about queues, `strategies` about tasks that cannot be tracked.
"""
