"""
Run Celery's tests on the plugin and on plain Celery, and compare: `make celery-suite`.

    python -m development.celery_suite                          all of them
    python -m development.celery_suite -k chord                 some: other arguments are passed to pytest
    python -m development.celery_suite --only ours t/integration/test_tasks.py

The last line is `N of M, oracle N of M`: how many of the tests that plain Celery does not skip pass. It fails if plain
Celery passes a test that the plugin does not. Logs and results are in `development/.state/celery-suite`.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from ..stack.instance import Instance
from ..stack.paths import ROOT
from ..stack.redis import RedisServer
from ..stack.services import Services
from .inapplicable import INAPPLICABLE
from .source import FOLDER, get_packages, get_tests

# Settings of the tests' own `conftest.py`, keys in Redis under the names that the tests expect, a row for all tasks
PLUGINS_CONFIG = {
    'track': 'all',
    'key_prefix': '',
    'celery': {
        'result_extended': True, 'task_create_missing_queues': False, 'broker_heartbeat': 0,
        'worker_hijack_root_logger': False, 'worker_log_color': False, 'include': ['t.integration.tasks'],
    },
}
PYTEST = [
    '-p', 'celery.contrib.pytest', '-p', 'development.celery_suite.plugin', '-p', 'no:django', '-p', 'no:cacheprovider',
    '-v', '-o', 'console_output_style=times',
]
KINDS = ('ours', 'oracle')


def main():
    parser = argparse.ArgumentParser(prog='python -m development.celery_suite', description=__doc__)
    parser.add_argument('--only', choices=KINDS, help='Run the tests on one of the two')
    options, arguments = parser.parse_known_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    kinds = [options.only] if options.only else KINDS
    with Services('celery-suite') as services:
        suite = Suite(services, get_tests(), get_packages(), arguments)
        with ThreadPoolExecutor() as pool:
            results = dict(zip(kinds, pool.map(suite.run, kinds)))
        if worse := compare(results):
            # The tests have deadlines of seconds, and the machine has other load
            print(f'Once more, those {len(worse)} alone', flush=True)
            results['ours'] |= suite.run('ours', worse)
            worse = compare(results)
    for name in worse:
        print(f'\n{name}\n{results["ours"][name][2]}')
    print('\nNot run, since it does not apply:')
    for name, reason in INAPPLICABLE.items():
        print(f'    {name}: {reason}')
    print(f'\n{", ".join(summary(kind, results) for kind in kinds)}')
    return 1 if worse or not all(results.values()) else 0


class Suite:
    """
    Args:
        services: The running `Services`, whose PostgreSQL is used
        tests: The folder with Celery's tests
        packages: The folder with what they need beside Celery
        arguments: What to run, for pytest
    """

    def __init__(self, services, tests, packages, arguments):
        self.services = services
        self.tests = tests
        self.packages = packages
        self.arguments = arguments if any(argument.startswith('t/') for argument in arguments) else [
            't/integration', *arguments
        ]

    def run(self, kind, names=()):
        """
        Run the tests; returns the outcome, the duration and the message of each, by its name.
        """
        started = time.monotonic()
        report = FOLDER / f'{kind}.json'
        report.unlink(missing_ok=True)
        directory = self.services.directory / f'{kind}-{len(names)}'
        redis = RedisServer(directory / 'redis', '', durable=False)  # the tests connect to it without a password
        redis.start(directory / 'redis.log', die_with_parent=True)
        try:
            with open(FOLDER / f'{kind}{"-again" if names else ""}.log', 'w') as log:
                subprocess.run(
                    [sys.executable, '-m', 'pytest', *PYTEST, *(names or self.arguments), *left_out()],
                    cwd=self.tests, env=self.environ(kind, redis, directory, report), stdout=log,
                    stderr=subprocess.STDOUT,
                )
        finally:
            redis.stop()
        print(f'{kind}: {time.monotonic() - started:.0f} s', flush=True)
        return json.loads(report.read_text()) if report.exists() else {}

    def environ(self, kind, redis, directory, report):
        url = f'redis://127.0.0.1:{redis.port}/0'
        environ = {name: os.environ[name] for name in os.environ.keys() - {'NETBOX_ROOT', 'DJANGO_SETTINGS_MODULE'}}
        if kind == 'ours':
            environ |= Instance(
                directory / 'netbox', self.services.cluster, redis, plugins_config={'netbox_celery': PLUGINS_CONFIG},
            ).write().environ
        return environ | {
            'TEST_BROKER': url, 'TEST_BACKEND': url, 'REDIS_HOST': '127.0.0.1', 'REDIS_PORT': str(redis.port),
            'CELERY_SUITE_REPORT': str(report), 'PYTHONPATH': f'{self.tests}:{ROOT}:{self.packages}',
            'PATH': f'{os.path.dirname(sys.executable)}:{os.environ["PATH"]}',
        }


def left_out():
    return [f'--{"deselect" if "::" in name else "ignore"}={name}' for name in INAPPLICABLE]


def compare(results):
    """
    Return the names of the tests that pass on plain Celery, but not on the plugin.
    """
    ours, oracle = (results.get(kind) for kind in KINDS)
    if ours is None or oracle is None:
        return []
    return [name for name, (outcome, *__) in oracle.items() if outcome == 'passed' and not passes(ours, name)]


def passes(results, name):
    return results.get(name, ('missing',))[0] == 'passed'


def summary(kind, results):
    measure = results.get('oracle', results[kind])
    names = [name for name, (outcome, *__) in measure.items() if outcome != 'skipped']
    passed = sum(passes(results[kind], name) for name in names)
    return f'{"oracle " if kind == "oracle" else ""}{passed} of {len(names)}'


if __name__ == '__main__':
    sys.exit(main())
