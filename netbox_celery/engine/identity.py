"""Who this process is: a worker's main process, a child of its pool, or neither; and which threads in it are ours."""
import os
import time
from uuid import uuid4

from ..config import get_config

__all__ = (
    'OWN_THREADS',
    'Identity',
    'identity',
)

#: What the names of the engine's own threads begin with.
OWN_THREADS = 'netbox-celery-'


class Identity:
    """Who this process is: the worker process group that it belongs to. Children inherit it, or are told of it."""

    def __init__(self):
        self.key = None
        self.name = ''
        self.pid = None
        self._last_beat = self._steady_since = float('-inf')

    def take(self, name):
        """Become a worker with a new key: what an earlier one of this name left is not this one's."""
        self.key, self.name, self.pid = uuid4(), name, os.getpid()

    def describe(self):
        """Return what another process needs to know to belong to this worker, `None` if this process is no worker's."""
        return self.key and (self.key, self.name, self.pid)

    def join(self, described):
        """Become a child of a worker."""
        self.key, self.name, self.pid = described

    def leave(self):
        """Be no worker any more: this process goes on as another program's."""
        self.__init__()

    @property
    def is_parent(self):
        """Whether this is a worker's main process, which has a heartbeat."""
        return self.pid == os.getpid()

    @property
    def is_child(self):
        """Whether this is a process of a worker's pool."""
        return self.pid not in (None, os.getpid())

    def note_beat(self):
        """Note a heartbeat of this worker's that has reached the database."""
        now = time.monotonic()
        if now - self._last_beat > get_config().worker_lost_after / 2:
            self._steady_since = now
        self._last_beat = now

    @property
    def steady_for(self):
        """For how long this worker was heard without a break, seconds; infinite in a process that is no worker."""
        return time.monotonic() - self._steady_since if self.key is not None else float('inf')

    @property
    def can_judge(self):
        """Whether this worker may take the silence of others for their death.

        When the database was away, everybody was silent: nobody is judged before all had the time to be heard again.
        """
        now, lost_after = time.monotonic(), get_config().worker_lost_after
        return now - self._last_beat <= lost_after / 2 and now - self._steady_since >= lost_after


identity = Identity()
