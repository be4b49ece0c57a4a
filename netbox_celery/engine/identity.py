"""What this process is: a worker's main process, a child of its pool, or neither; and which of its threads are ours."""
import os
import time
from typing import Any
from uuid import UUID, uuid4

from ..config import get_config

__all__ = (
    'OWN_THREADS',
    'Identity',
    'identity',
)

#: Prefix of the names of the engine's own threads.
OWN_THREADS = 'netbox-celery-'


class Identity:
    """The worker process group to which this process belongs. Children inherit it, or get it from their parent."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self.key: UUID | None = None
        self.name = ''
        self.pid: int | None = None
        self._last_beat = self._steady_since = float('-inf')

    def take(self, name: str) -> None:
        """Become a worker, with a new key: runs of an earlier worker with this name do not belong to this one."""
        self.key, self.name, self.pid = uuid4(), name, os.getpid()

    def describe(self) -> Any:
        """Return the argument for `join` by which another process joins this worker; `None` outside of a worker."""
        return self.key and (self.key, self.name, self.pid)

    def join(self, described: Any) -> None:
        """Become a child of a worker."""
        self.key, self.name, self.pid = described

    def leave(self) -> None:
        """Stop being a worker: this process continues as another program."""
        self._reset()

    @property
    def is_parent(self) -> bool:
        """Whether this is a worker's main process, which sends heartbeats."""
        return self.pid == os.getpid()

    @property
    def is_child(self) -> bool:
        """Whether this is a process of a worker's pool."""
        return self.pid not in (None, os.getpid())

    def note_beat(self) -> None:
        """Record that a heartbeat of this worker has reached the database."""
        now = time.monotonic()
        if now - self._last_beat > get_config().worker_lost_after / 2:
            self._steady_since = now
        self._last_beat = now

    @property
    def steady_for(self) -> float:
        """How long this worker's heartbeats have had no gap, seconds; infinite in a process that is not a worker."""
        return time.monotonic() - self._steady_since if self.key is not None else float('inf')

    @property
    def may_declare_lost(self) -> bool:
        """Whether this worker may consider silent workers lost.

        While the database is unavailable, all workers are silent. So after that, all of them first get the time to send
        a heartbeat again.
        """
        now, lost_after = time.monotonic(), get_config().worker_lost_after
        return now - self._last_beat <= lost_after / 2 and now - self._steady_since >= lost_after


identity = Identity()
