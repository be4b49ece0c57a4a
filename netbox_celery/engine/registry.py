"""The registry of an app's tasks, which says when there is a new one: a worker has to prepare each."""
from celery.app.registry import TaskRegistry

__all__ = (
    'Registry',
)


class Registry(TaskRegistry):

    #: Called with each task that is registered from now on.
    on_register = None

    def __setitem__(self, name, task):
        super().__setitem__(name, task)
        if self.on_register is not None:
            self.on_register(task)
