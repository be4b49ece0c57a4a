"""Run Celery's tests on the plugin and on plain Celery, and compare: `python -m development.celery_suite --help`."""

import argparse
import json
import os
import subprocess
import sys
import time

from ..stack.paths import ROOT
from ..stack.instance import Instance
from ..stack.redis import RedisServer
from ..stack.services import Services
from .inapplicable import INAPPLICABLE
from .source import FOLDER, get_packages, get_tests

PLUGINS_CONFIG = {
    'track': 'all',
    'celery': {
        'result_extended': True, 'task_create_missing_queues': False, 'broker_heartbeat': 0,
        'worker_hijack_root_logger': False, 'worker_log_color': False, 'include': ['t.integration.tasks'],
    },
}


def run(kind, tests, arguments, environ, redis):
    report = FOLDER / f'{kind}.json'
    report.unlink(missing_ok=True)
    env = {
        **{name: value for name, value in os.environ.items() if name not in ('NETBOX_ROOT', 'DJANGO_SETTINGS_MODULE')},
        'TEST_BROKER': f'redis://127.0.0.1:{redis.port}/0', 'TEST_BACKEND': f'redis://127.0.0.1:{redis.port}/0', 'REDIS_HOST': '127.0.0.1',
        'REDIS_PORT': str(redis.port), 'CELERY_SUITE_REPORT': str(report),
        'PYTHONPATH': f'{tests}:{ROOT}:{get_packages()}',
        'PATH': f'{os.path.dirname(sys.executable)}:{os.environ["PATH"]}', **environ,
    }
    started = time.monotonic()
    with open(FOLDER / f'{kind}.log', 'w') as log:
        subprocess.run([
            sys.executable, '-m', 'pytest', '-p', 'celery.contrib.pytest', '-p', 'no:django', '-p', 'no:cacheprovider', '-p',
            'development.celery_suite.plugin', '-v', '-o', 'console_output_style=times', *arguments,
        ], cwd=tests, env=env, stdout=log, stderr=subprocess.STDOUT)
    print(f'{kind}: {time.monotonic() - started:.0f} s', flush=True)
    return json.loads(report.read_text()) if report.exists() else {}


def main():
    parser = argparse.ArgumentParser(prog='python -m development.celery_suite')
    parser.add_argument('--only', choices=['ours', 'oracle'])
    parser.add_argument('arguments', nargs=argparse.REMAINDER)
    options = parser.parse_args()
    tests = get_tests()
    arguments = options.arguments or ['t/integration']
    results = {}
    with Services('celery-suite') as services:
        # The tests connect to Redis without a password
        redis = RedisServer(services.directory / 'redis-without-password', '', durable=False)
        redis.start(services.directory / 'log' / 'redis.log', die_with_parent=True)
        instance = Instance(
            services.directory / 'suite', services.cluster, redis, plugins_config={'netbox_celery': PLUGINS_CONFIG},
        ).write()
        try:
            for kind, environ in (('oracle', {}), ('ours', instance.environ)):
                if options.only in (None, kind):
                    results[kind] = run(kind, tests, arguments, environ, redis)
        finally:
            redis.stop()
    print({kind: len(r) for kind, r in results.items()})


if __name__ == '__main__':
    sys.exit(main())
