"""
A process that makes calls and answers requests: `python -m development.bench.probe tracked`.

Reads a line `["what", {arguments}]` and answers with a line of JSON, until its input ends.
"""

import json
import os
import sys
import time


class BareProbe:
    """Sends tasks by bare Celery."""

    def __init__(self):
        from .bare import noop

        self.noop = noop

    def delay(self, number):
        """
        Return how long a number of calls takes, in seconds.
        """
        delay = self.noop.delay
        started = time.perf_counter()
        for __ in range(number):
            delay()
        return time.perf_counter() - started

    def apply_async(self, number):
        """
        Return how long a number of calls takes, in seconds.
        """
        apply_async = self.noop.apply_async
        started = time.perf_counter()
        for __ in range(number):
            apply_async()
        return time.perf_counter() - started

    def fill(self, number):
        """
        Fill the queue and return the IDs of the messages.
        """
        return [self.noop.delay().id for __ in range(number)]


class TrackedProbe(BareProbe):
    """Sends tasks from within NetBox, like a plugin."""

    def __init__(self):
        import django

        django.setup()
        from netbox_celery.models import CeleryResult

        from .tracked import noop

        self.noop = noop
        self.model = CeleryResult

    def enqueue_many(self, number):
        """
        Return how long a number of runs takes, in seconds.
        """
        started = time.perf_counter()
        self.model.enqueue_many(self.noop, [()] * number)
        return time.perf_counter() - started

    def fill(self, number):
        self.model.enqueue_many(self.noop, [()] * number)

    def enqueue(self, name, **kwargs):
        """
        Enqueue a run and return its primary key.
        """
        return self.model.enqueue(name, kwargs=kwargs).pk


class HistoryProbe:
    """Requests NetBox's pages as a logged-in user, without a network in between."""

    def __init__(self):
        import django

        django.setup()
        from django.test import Client

        from users.models import User

        self.me, __ = User.objects.get_or_create(username='bench', defaults={'is_superuser': True})
        self.client = Client(headers={'host': 'localhost'})
        self.client.force_login(self.me)

    def user(self):
        return self.me.pk

    def get(self, url, number):
        """
        Return how long each of a number of requests takes, in seconds.
        """
        took = []
        for __ in range(number):
            started = time.perf_counter()
            response = self.client.get(url)
            took.append(time.perf_counter() - started)
            if response.status_code not in (200, 286):
                raise RuntimeError(f'{url} is answered with {response.status_code}')
        return took

    def prune(self, days):
        """
        Delete old runs, and return how many, how long it took and how long the longest batch took, in seconds.
        """
        from netbox_celery.engine.worker import retention

        times = [time.perf_counter()]
        pruned = retention.prune(retention.cutoff(days), report=lambda pruned: times.append(time.perf_counter()))
        return {
            'runs': pruned.runs, 'lines': pruned.lines, 'took': time.perf_counter() - times[0],
            'longest': max(after - before for before, after in zip(times, times[1:])),
        }


PROBES = {
    'bare': BareProbe,
    'tracked': TrackedProbe,
    'history': HistoryProbe,
}


def main():
    # Other output must not get between the answers
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    probe = PROBES[sys.argv[1]]()
    for line in sys.stdin:
        what, arguments = json.loads(line)
        print(json.dumps(getattr(probe, what)(**arguments)), file=answers, flush=True)


if __name__ == '__main__':
    main()
