"""The commands behind the Makefile."""

import argparse
import os
import shutil
import signal
import subprocess
import sys

from .demo import Demo
from .processes import StackError
from .services import Services
from .template import ensure_template, say


def template(options):
    """
    Prepare the database that test runs and demo start from.
    """
    ensure_template()


def demo(options):
    """
    Start the demo and stay with it: Ctrl-C stops it.
    """
    instance = Demo(foreground=True)
    try:
        instance.start()
        print('Ctrl-C stops all of it.', flush=True)
        instance.watch()
    except KeyboardInterrupt:
        print(file=sys.stderr)
    finally:
        say('Stopping')
        instance.stop()


def up(options):
    """
    Start the demo in the background, and return when everything answers.
    """
    Demo().start()
    print('make down stops all of it.')


def down(options):
    """
    Stop the demo, no matter which command has started it.
    """
    stopped = Demo().stop()
    say(f'Stopped {", ".join(stopped)}' if stopped else 'Nothing was running')


def run(options):
    """
    Run a command in a fresh instance of its own, e.g. `run netbox shell`.
    """
    with Services('run') as services:
        path = f'{os.path.dirname(sys.executable)}:{os.environ["PATH"]}'
        env = {**os.environ, **services.instance.environ, 'PATH': path}
        # The commands of the venv need not be on the caller's PATH
        command, *arguments = options.command or [os.environ.get('SHELL', 'sh')]
        return subprocess.run([shutil.which(command, path=path) or command, *arguments], env=env).returncode


def main():
    parser = argparse.ArgumentParser(prog='python -m development.stack')
    commands = parser.add_subparsers(dest='function', required=True, metavar='COMMAND')
    for function in (template, demo, up, down, run):
        command = commands.add_parser(function.__name__, help=function.__doc__.strip())
        command.set_defaults(function=function)
        if function is run:
            command.add_argument('command', nargs=argparse.REMAINDER)
    options = parser.parse_args()

    # Clean up before stopping, also in the background of a script, where Ctrl-C would be ignored
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, lambda number, frame: sys.exit(128 + number))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return options.function(options) or 0
    except KeyboardInterrupt:
        return 130
    except StackError as error:
        print(f'\n{error}', file=sys.stderr)
        return 1


if __name__ == '__main__':
    sys.exit(main())
