"""
A plugin of pytest's: gives Celery's tests the app of the plugin, if the environment names a NetBox, and writes a report.
"""

import json
import os
from contextlib import contextmanager
from pathlib import Path

import pytest

if 'NETBOX_ROOT' in os.environ:
    import celery.contrib.pytest
    from celery import signals
    from celery.contrib.testing import tasks, worker  # noqa: F401 - the tasks register themselves

    from netbox_celery.celery import app as netbox_app

    @contextmanager
    def use_netbox_app(enable_logging=False, use_trap=False, parameters=None, **config):
        """Give a test the one app that there is, with the settings that it asks for, instead of an app of its own."""
        del config['broker_url'], config['result_backend']
        changes = netbox_app.conf.changes
        before = dict(changes)
        netbox_app.conf.update(config)
        try:
            yield netbox_app
        finally:
            changes.clear()
            changes.update(before)

    celery.contrib.pytest._create_app = use_netbox_app

    class Controller(worker.TestWorkController):
        """The tests' own worker, which is one in a thread of this process."""

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            signals.celeryd_after_setup.send(sender=self.hostname, instance=self, conf=self.app.conf)

        def on_consumer_ready(self, consumer):
            signals.worker_ready.send(sender=consumer)
            super().on_consumer_ready(consumer)

    worker._start_worker_thread.__wrapped__.__kwdefaults__ = None
    defaults = worker._start_worker_thread.__wrapped__.__defaults__
    worker._start_worker_thread.__wrapped__.__defaults__ = tuple(
        Controller if default is worker.TestWorkController else default for default in defaults
    )


OUTCOMES = {}


def pytest_runtest_logreport(report):
    """Keep the worst of a test's phases, of its last run."""
    if report.when == 'setup':
        OUTCOMES[report.nodeid] = ['passed', 0.0, '']
    outcome = OUTCOMES[report.nodeid]
    outcome[1] += report.duration
    # What fails with Celery is no worse if it does not: strict or not, that is "XPASS"
    if report.outcome != 'passed' and outcome[0] != 'failed' and 'XPASS' not in str(report.longrepr)[:10]:
        outcome[0] = 'xfailed' if hasattr(report, 'wasxfail') else report.outcome
        outcome[2] = report.longreprtext if report.failed else str(report.longrepr)
    Path(os.environ['CELERY_SUITE_REPORT']).write_text(json.dumps(OUTCOMES))
