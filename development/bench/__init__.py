"""
The cost of tracking: netbox-celery compared with bare Celery, measured together, on the same broker.

    make bench                          all measurements
    make bench ARGS="drain delay"       some of them
    make bench ARGS="--quick"           fewer and shorter rounds, and a history of 100,000 instead of a million

The measurements alternate between the tracked and the bare side, so that a busy machine slows both:

    drain           no-op tasks per second that a worker with two processes takes from a filled queue
    delay           calls of `delay()` per second outside of a transaction
    enqueue_many    `CeleryResult.enqueue_many` rows per second, until the messages are in Redis, against `apply_async`
    log             lines of `self.log` per second until visible to others, against a raw `COPY`; the caller's wait
    visible         delay from `self.log` to another connection
    history         how a long history slows pages: a million runs and log lines against a thousand

"Bare" is a Celery app in its own module (`bare.py`), without Django and NetBox: the same Redis, results in Redis,
the same number of processes, Celery's own settings. The figures are ratios, which compare better between machines than
seconds. They go to `development/.state/bench.json`, where a partial run keeps the other figures.

    stage       services, workers and the processes that make calls
    probe       such a process: reads commands, answers with durations
    measures    the measurements
    others      other load on the machine
    report      the printed and written report
"""
