"""Bare Celery: no Django, no NetBox, no setting but the broker's URL."""

import os

from celery import Celery

app = Celery('bare', broker=os.environ['BENCH_REDIS'], backend=os.environ['BENCH_REDIS'])


@app.task(name='bench:noop')
def noop():
    pass
