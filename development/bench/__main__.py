"""The command behind `make bench`."""

import argparse
import os
import signal
import sys
import time

from ..stack.processes import StackError
from ..stack.services import Services
from . import others
from .measures import MEASURES
from .report import PATH, print_figures, save
from .stage import PLUGINS_CONFIG, Stage


def main():
    parser = argparse.ArgumentParser(prog='python -m development.bench')
    parser.add_argument('measures', nargs='*', metavar='MEASURE', help=f'Of {", ".join(MEASURES)}; all by default')
    parser.add_argument('--quick', action='store_true', help='Take shorter measurements')
    options = parser.parse_args()
    if unknown := [name for name in options.measures if name not in MEASURES]:
        parser.error(f'There is no measurement {unknown[0]}. There are: {", ".join(MEASURES)}')

    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    # The bare side must not find a NetBox
    for name in ('DJANGO_SETTINGS_MODULE', 'NETBOX_ROOT', 'NETBOX_CONFIGURATION'):
        os.environ.pop(name, None)
    try:
        return run(options.measures or list(MEASURES), options.quick)
    except KeyboardInterrupt:
        return 130
    except StackError as error:
        print(f'\n{error}', file=sys.stderr)
        return 1


def run(names, quick):
    with Services('bench', durable=True, plugins_config=PLUGINS_CONFIG) as services:
        settings = {}
        with services.cluster.connect() as connection:
            for name in ('server_version', 'fsync', 'synchronous_commit', 'full_page_writes'):
                settings[name], = connection.execute(f'SHOW {name}').fetchone()
        print(
            f'PostgreSQL {settings.pop("server_version")} as in production: '
            f'{", ".join(f"{name} {value}" for name, value in settings.items())}. Redis without persistence.\n'
            'Workers have two prefork processes. Figures are medians, with minimum and maximum.\n',
            flush=True,
        )
        stage = Stage(services, quick)
        for name in names:
            started, others.shares = time.monotonic(), []
            try:
                figures = MEASURES[name](stage)
            finally:
                stage.forget()
            print_figures(name, figures, time.monotonic() - started)
            save(name, figures, quick=quick)
    print(f'Written to {PATH}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
