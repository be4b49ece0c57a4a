"""
A cluster whose database `netbox` is migrated, created once and copied when one is needed.

NetBox's own migrations take minutes on an empty database. The result is kept as a dump in the user's cache folder,
for all checkouts, until NetBox or PostgreSQL changes. The migrations of the plugins in this checkout are applied on top
of it; that cluster is kept under `development/.state/template`, and is created again when one of them changes.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from importlib.metadata import version
from tempfile import TemporaryDirectory

from .instance import PLUGINS, Instance, executable, netbox
from .paths import CACHE, ROOT, STATE
from .postgres import DATABASE, Cluster, major_version
from .processes import StackError, locked
from .redis import RedisServer
from .scratch import scratch, secret

__all__ = (
    'PRISTINE',
    'copy_template',
    'ensure_template',
    'migrations',
    'template_key',
)

TEMPLATES = STATE / 'template'
LOCK = STATE / 'template.lock'

# An unused copy of the database in the same cluster: others can be created from it
PRISTINE = 'netbox_pristine'

# Folders with the plugins' migrations
MIGRATIONS = (
    ROOT / 'netbox_celery' / 'migrations',
    ROOT / 'development' / 'netbox_example_plugin' / 'netbox_example_plugin' / 'migrations',
)


def template_key():
    """
    Return what a template depends on: the versions of NetBox and PostgreSQL, the password, the plugins' migrations.
    """
    digest = hashlib.sha256(f'{secret("password")} {migrations()}'.encode())
    return f'netbox-{version("netbox")}-postgresql-{major_version()}-{digest.hexdigest()[:12]}'


def migrations():
    """
    Return the plugins' migrations, each with what tells whether it has changed.
    """
    return {
        str(path.relative_to(ROOT)): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in MIGRATIONS
        for path in sorted(folder.glob('[0-9]*.py'))
    }


def copy_template(directory, **options):
    """
    Create a cluster in a new directory with all migrations applied, and return it, not started.
    """
    ensure_template()
    with locked(LOCK, shared=True):
        cluster = Cluster(directory, secret('password'), **options)
        cluster.copy(TEMPLATES / template_key())
    return cluster


def ensure_template():
    """
    Create the template, unless it exists.
    """
    if (TEMPLATES / template_key()).exists():
        return
    with locked(LOCK, wait=False) as mine:
        if not mine:
            say('Waiting for another process, which is preparing the database')
    with locked(LOCK):
        if (target := TEMPLATES / template_key()).exists():
            return
        ensure_dump()
        started = time.monotonic()
        say('Preparing the database: NetBox from the cache, then the migrations of the plugins')
        shutil.rmtree(TEMPLATES, ignore_errors=True)
        with workshop(TEMPLATES / 'draft') as (cluster, redis):
            cluster.create_database(DATABASE)
            cluster.restore(DATABASE, dump_path())
            with TemporaryDirectory() as root:
                netbox(Instance(root, cluster, redis, plugins=PLUGINS).write(), 'migrate', '--no-input')
            with cluster.connect(DATABASE) as connection:
                connection.execute('VACUUM ANALYZE')
            cluster.create_database(PRISTINE, DATABASE)
            cluster.shut_down()
        (TEMPLATES / 'draft').rename(target)
        say(f'The database is ready ({elapsed(started)})')


#
# NetBox's own migrations
#

def dump_path():
    return CACHE / f'netbox-{version("netbox")}-postgresql-{major_version()}.dump'


def ensure_dump():
    """
    Create the dump of a database with NetBox's own migrations, unless it is in the cache.
    """
    if dump_path().exists():
        return
    with locked(CACHE / 'lock', wait=False) as mine:
        if not mine:
            say('Waiting for another checkout, which is applying the migrations of NetBox')
    with locked(CACHE / 'lock'):
        if dump_path().exists():
            return
        started = time.monotonic()
        say(f'Applying the migrations of NetBox {version("netbox")} to an empty database: some minutes, only once')
        draft = dump_path().with_suffix(f'.{os.getpid()}')
        with scratch('migrate') as directory, workshop(directory / 'postgres') as (cluster, redis):
            cluster.create_database(DATABASE)
            migrate_with_progress(Instance(directory / 'netbox', cluster, redis, plugins=[]).write())
            cluster.dump(DATABASE, draft)
        draft.replace(dump_path())
        say(f'NetBox is migrated ({elapsed(started)}); kept in {dump_path()}')


def migrate_with_progress(instance):
    """
    Run `netbox migrate` and print its progress: in one line on a terminal, otherwise in a new line now and then.
    """
    plan = netbox(instance, 'showmigrations', '--plan')
    total = sum(line.startswith('[ ]') for line in plan.splitlines())
    started = reported = time.monotonic()
    done, output = 0, []
    process = subprocess.Popen(
        [executable('netbox'), 'migrate', '--no-input'],
        env={**os.environ, **instance.environ, 'PYTHONUNBUFFERED': '1'},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )
    try:
        for line in process.stdout:
            output.append(line)
            if not line.strip().startswith('Applying'):
                continue
            done += 1
            progress = f'  {done} of {total} migrations, {elapsed(started)} ({line.split()[1].rstrip(".")})'
            if sys.stderr.isatty():
                width = shutil.get_terminal_size().columns - 1
                print(f'\r\033[K{progress[:width]}', end='', file=sys.stderr, flush=True)
            elif time.monotonic() - reported >= 15:
                reported = time.monotonic()
                say(progress)
        process.wait()
    finally:
        process.kill()
        process.wait()
        if sys.stderr.isatty():
            print('\r\033[K', end='', file=sys.stderr, flush=True)
    if process.returncode:
        raise StackError(f'netbox migrate failed:\n\n{"".join(output[-30:])}')


#
# Helpers
#

@contextmanager
def workshop(directory):
    """
    Run an empty cluster in a new directory, and a Redis, for the duration of a block.
    """
    with TemporaryDirectory() as redis_directory:
        cluster = Cluster(directory, secret('password'), durable=False)
        redis = RedisServer(redis_directory, secret('password'), durable=False)
        cluster.initialise()
        try:
            redis.start(STATE / 'log' / 'template-redis.log', die_with_parent=True)
            cluster.start(STATE / 'log' / 'template-postgres.log', die_with_parent=True)
            yield cluster, redis
        finally:
            cluster.stop()
            redis.stop()


def elapsed(started):
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    return f'{minutes} min {seconds:02} s' if minutes else f'{seconds} s'


def say(message):
    print(message, file=sys.stderr, flush=True)
