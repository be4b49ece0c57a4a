"""
A pytest plugin for Celery's tests: lets them use the plugin's app, if the environment names a NetBox, and reports.
"""

import json
import os
from contextlib import contextmanager
from pathlib import Path

OUTCOMES = {}


def pytest_runtest_logreport(report):
    """Keep the worst outcome of a test's phases, in its last run."""
    if report.when == 'setup':
        OUTCOMES[report.nodeid] = ['passed', 0.0, '']
    outcome = OUTCOMES[report.nodeid]
    outcome[1] += report.duration
    # A test of a defect of Celery that unexpectedly passes counts as passed
    if report.outcome != 'passed' and outcome[0] != 'failed' and 'XPASS' not in str(report.longrepr)[:10]:
        outcome[0] = 'xfailed' if hasattr(report, 'wasxfail') else report.outcome
        outcome[2] = report.longreprtext if report.failed else str(report.longrepr)
    Path(os.environ['CELERY_SUITE_REPORT']).write_text(json.dumps(OUTCOMES))


def use_our_app():
    """Give tests the plugin's app instead of their own, and a worker of it."""
    import celery.contrib.pytest
    from celery.contrib.testing import tasks  # noqa: F401 - it registers its task

    from netbox_celery.celery import app

    def renew():
        """Make everything that has read the settings read them again."""
        app.__dict__.pop('amqp', None)
        app._backend_cache = app._local.backend = None

    @contextmanager
    def create_app(enable_logging=False, use_trap=False, parameters=None, **config):
        # NetBox's settings have the broker's URL; everything else is set for the duration of the test
        config = {name: value for name, value in config.items() if name not in ('broker_url', 'result_backend')}
        before = dict(app.conf.changes)
        app.conf.update(config)
        renew()
        try:
            yield app
        finally:
            app.conf.changes.clear()
            app.conf.changes.update(before)
            renew()

    celery.contrib.pytest._create_app = create_app


if 'NETBOX_ROOT' in os.environ:
    use_our_app()
