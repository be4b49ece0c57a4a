"""
What tracking costs: netbox-celery against bare Celery, in the same run, on the same broker.

    make bench                          all of it
    make bench ARGS="drain delay"       some of it
    make bench ARGS="--quick"           fewer and shorter rounds, and a history of 100,000 instead of a million

What is measured, each with the tracked and the bare side in turns, so that a busy machine slows both:

    drain           no-op tasks a second that a worker with two processes takes out of a filled queue
    delay           calls of `delay()` a second outside of a transaction
    enqueue_many    `CeleryResult.enqueue_many` rows a second, until the messages are in Redis, against `apply_async`
    log             lines of `self.log` a second until others see them, against a raw `COPY`; what a caller waits
    visible         delay from `self.log` to another connection
    history         how a long history slows pages: a million results and log lines against a thousand

"Bare" is a Celery app in a module of its own (`bare.py`), without Django and NetBox: the same Redis, results in Redis,
the same number of processes, Celery's own settings. The figures are ratios because those travel between machines better
than seconds do. They go to `development/.state/bench.json`, where a partial run leaves the other figures alone.

    stage       services, workers and the processes in which calls are made
    probe       such a process: reads what to do, answers how long it took
    measures    the measurements
    others      what else is going on on the machine
    report      what is printed and written
"""
