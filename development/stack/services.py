"""
PostgreSQL, Redis and a NetBox instance for the duration of a test run, a management command or a benchmark.

Each has its own cluster and Redis, so that any number of them can be used at the same time. They start within a second,
and end with the process that started them, even if that is killed.
"""

from contextlib import ExitStack

from .instance import Instance
from .redis import RedisServer
from .scratch import scratch, secret
from .template import PRISTINE, copy_template

__all__ = (
    'Services',
)


class Services:
    """
    A context manager.

        with Services('bench') as services:
            subprocess.run([...], env={**os.environ, **services.instance.environ})

    Args:
        purpose: A word that names the folder
        durable: Whether PostgreSQL waits for the disk, as in production
        options: Passed to `Instance`
    """

    def __init__(self, purpose, *, durable=False, **options):
        self.purpose = purpose
        self.durable = durable
        self.options = options

    def __enter__(self):
        with ExitStack() as stack:
            self.directory = stack.enter_context(scratch(self.purpose))
            password = secret('password')
            self.cluster = copy_template(self.directory / 'postgres', durable=self.durable)
            self.redis = RedisServer(self.directory / 'redis', password, durable=False)
            stack.callback(self.cluster.stop)
            stack.callback(self.redis.stop)
            self.redis.start(self.directory / 'log' / 'redis.log', die_with_parent=True)
            self.cluster.start(self.directory / 'log' / 'postgres.log', die_with_parent=True)
            self.instance = Instance(self.directory / 'netbox', self.cluster, self.redis, **self.options).write()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception):
        self._stack.__exit__(*exception)

    def another_instance(self, name, *, redis_databases, **options):
        """
        Create a second NetBox beside the first, with its own fresh database.

        Args:
            name: Of the database, and of the folder
            redis_databases: The numbers of those for tasks and for caching; 0 and 1 are taken
            options: Passed to `Instance`
        """
        self.cluster.create_database(name, PRISTINE)
        return Instance(
            self.directory / name, self.cluster, self.redis, database=name, redis_databases=redis_databases,
            **{**self.options, **options},
        ).write()
