"""A private Redis server: its own port on 127.0.0.1, a password, nothing on disk unless it is durable."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from redis import ConnectionError, Redis

from .processes import Process, StackError, free_port, tail, wait_until

__all__ = (
    'RedisServer',
)


class RedisServer:
    """
    Args:
        directory: Folder for its files
        password: Password of clients
        durable: Whether its contents survive a restart, or a crash
    """

    def __init__(self, directory, password, *, durable=True):
        self.directory = Path(directory)
        self.password = password
        self.durable = durable
        self.port = None
        self.process = None

    def start(self, log, *, port=None, die_with_parent=False):
        """
        Start the server and wait until it answers.
        """
        server = shutil.which('redis-server') or shutil.which('valkey-server')
        if not server:
            raise StackError('Redis was not found. On Debian and Ubuntu: sudo apt-get install redis-server')
        self.directory.mkdir(parents=True, exist_ok=True)
        configuration = self.directory / 'redis.conf'
        # Another process may take the port after it was found free
        for _attempt in range(3):
            self.port = free_port(port)
            # In a file, since all users can see the arguments of a command
            with open(os.open(configuration, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 'w') as handle:
                handle.write('\n'.join((
                    'bind 127.0.0.1',
                    f'port {self.port}',
                    f'requirepass "{self.password}"',
                    f'dir "{self.directory}"',
                    f'appendonly {"yes" if self.durable else "no"}',
                    'save ""',
                    '',
                )))
            self.process = Process.start('redis', [server, configuration], log, die_with_parent=die_with_parent)
            wait_until(lambda: not self.process.running or self.answers(), timeout=30)
            if self.process.running and self.answers():
                return self
            self.process.stop()
            port = None
        raise StackError(f'Redis does not start. Its log, {log}, ends with:\n\n{tail(log)}')

    def stop(self):
        if self.process:
            self.process.stop()
            self.process = None

    def answers(self):
        with suppress(ConnectionError), Redis.from_url(self.url()) as client:
            return client.ping()
        return False

    def url(self, database=0):
        return f'redis://default:{self.password}@127.0.0.1:{self.port}/{database}'
