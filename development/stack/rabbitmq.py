"""
A private RabbitMQ server: ports of its own on 127.0.0.1, a password, and nothing shared with the machine's own one.

Erlang finds its nodes by a daemon, `epmd`, which it starts if there is none, and leaves running. So the server gets its
own daemon, which ends with it.
"""

import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path

from amqp import Connection
from amqp.exceptions import AMQPError

from .processes import Process, StackError, free_port, tail, wait_until

__all__ = (
    'RabbitMQServer',
)

USER = 'netbox'
# Debian's command on the PATH runs only as the user `rabbitmq`
SCRIPT = Path('/usr/lib/rabbitmq/bin/rabbitmq-server')


class RabbitMQServer:
    """
    Args:
        directory: Folder for its files
        password: Password of clients
    """

    def __init__(self, directory, password):
        self.directory = Path(directory)
        self.password = password
        self.port = None
        self.process = None
        self.names = None

    @staticmethod
    def is_installed():
        return SCRIPT.exists() and shutil.which('epmd') is not None

    def start(self, log, *, port=None, die_with_parent=False):
        """
        Start the server and wait until it answers. Persistent messages survive a restart.
        """
        if not self.is_installed():
            raise StackError('RabbitMQ was not found. On Debian and Ubuntu: sudo apt-get install rabbitmq-server')
        self.directory.mkdir(parents=True, exist_ok=True)
        # Another process may take a port after it was found free
        for _attempt in range(3):
            self.port = free_port(port)
            names, distribution = free_port(), free_port()
            configuration = self.directory / 'rabbitmq.conf'
            with open(os.open(configuration, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 'w') as handle:
                handle.write('\n'.join((
                    f'listeners.tcp.1 = 127.0.0.1:{self.port}',
                    f'default_user = {USER}',
                    f'default_pass = {self.password}',
                    'log.console = true',
                    # By default, the log of quorum queues has 512 MB from the start
                    'raft.wal_max_size_bytes = 16000000',
                    '',
                )))
            env = {
                'ERL_EPMD_PORT': str(names),
                'ERL_EPMD_ADDRESS': '127.0.0.1',
                # The folder with the cookie
                'HOME': str(self.directory),
                'RABBITMQ_CONF_ENV_FILE': '/dev/null',
                'RABBITMQ_CONFIG_FILE': str(configuration),
                'RABBITMQ_DIST_PORT': str(distribution),
                'RABBITMQ_ENABLED_PLUGINS_FILE': str(self.directory / 'plugins'),
                'RABBITMQ_LOG_BASE': str(self.directory / 'log'),
                'RABBITMQ_MNESIA_BASE': str(self.directory / 'data'),
                'RABBITMQ_NODENAME': 'netbox-celery@localhost',
                'RABBITMQ_PID_FILE': str(self.directory / 'pid'),
                'RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS': '-kernel inet_dist_use_interface {127,0,0,1}',
                # One process instead of a shell with a child
                'RUNNING_UNDER_SYSTEMD': 'true',
            }
            self.names = Process.start(
                'epmd', ['epmd', '-port', str(names), '-address', '127.0.0.1'], log, env=env,
                die_with_parent=die_with_parent,
            )
            self.process = Process.start(
                'rabbitmq', [SCRIPT], log, env=env, cwd=self.directory, die_with_parent=die_with_parent,
            )
            wait_until(lambda: not self.process.running or self.answers(), timeout=90)
            if self.process.running and self.answers():
                return self
            self.stop()
            port = None
        raise StackError(f'RabbitMQ does not start. Its log, {log}, ends with:\n\n{tail(log)}')

    def stop(self):
        """
        End the server and its daemon.
        """
        for process in (self.process, self.names):
            if process:
                process.stop()
        self.process = self.names = None

    def crash(self):
        """
        Kill the server, like a failure of its host.
        """
        os.kill(self.process.pid, signal.SIGKILL)
        wait_until(lambda: not self.process.running, 10)
        self.stop()

    def answers(self):
        with suppress(OSError, AMQPError):
            with Connection(f'127.0.0.1:{self.port}', USER, self.password, connect_timeout=5) as connection:
                return connection.connected
        return False

    def url(self):
        return f'amqp://{USER}:{self.password}@127.0.0.1:{self.port}//'
