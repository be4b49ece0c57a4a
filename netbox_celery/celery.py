"""The Celery app: `celery -A netbox_celery worker`, `beat`, `inspect`, ...

In NetBox's own processes (web, rqworker, shell) the plugin's configuration imports this module, which makes the app
the current one: `shared_task` binds to it. From the `celery` command it is the other way round, and NetBox is set up
from here.
"""
import inspect
import os
from functools import cached_property, partial

import django
from celery import Celery
from django.apps import apps
from kombu.transport import TRANSPORT_ALIASES

os.environ.setdefault('DJANGO_SETTINGS_MODULE', 'netbox.settings')
# NetBox's web process runs Django's system checks; a worker would spend 7 of its first 12 seconds on them.
os.environ.setdefault('CELERY_SKIP_CHECKS', '1')

if not apps.ready and not apps.loading:
    # The `celery` command imports this first. Setting NetBox up comes back here by the plugin's `ready()`, which finds
    # the module half done and leaves it at that.
    django.setup()

from . import broker, host  # noqa: E402
from .config import get_config  # noqa: E402
from .engine.backend import tracking  # noqa: E402
from .engine.canvas import forget_ids  # noqa: E402
from .engine.enqueue import send  # noqa: E402
from .engine.ids import OneSpelling, spell_results  # noqa: E402
from .engine.publish import publish  # noqa: E402
from .engine.queues import RefuseReserved  # noqa: E402
from .engine.upstream import with_upstream  # noqa: E402

__all__ = (
    'NetBoxCelery',
    'app',
)


class NetBoxCelery(Celery):
    """A Celery app whose calls make rows and whose result backend writes their ends."""

    amqp_cls = 'netbox_celery.engine.queues:AMQP'
    registry_cls = 'netbox_celery.engine.registry:Registry'
    control_cls = 'netbox_celery.engine.revoke:Control'

    @cached_property
    def Worker(self):
        return self.subclass_with_self('netbox_celery.engine.worker:Worker')

    def send_task(self, name, args=None, kwargs=None, **options):
        """Send a task by name. `apply_async`, canvas, retries and beat all come through here.

        Takes the `netbox_*` options beside Celery's own (see `netbox_celery.tasks`).
        """
        return send(self, partial(publish, self), name, args, kwargs, options)

    def _get_backend(self):
        return tracking(with_upstream(super()._get_backend()))

    def _task_from_fun(self, fun, **options):
        # Celery takes what has a name and annotations, as functions have, and whose name is one in Python too.
        if 'name' in options and not (inspect.isroutine(fun) and fun.__name__.isidentifier()):
            fun = _function(fun)
        return super()._task_from_fun(fun, **options)


def _function(target, known={}):
    """Return a function that calls an object (an instance, a `functools.partial`, a lambda): one for each object."""
    def function(*args, **kwargs):
        return target(*args, **kwargs)

    if id(target) not in known:
        function.__module__, function.__doc__ = target.__module__, target.__doc__
        function.__qualname__ = getattr(target, '__qualname__', type(target).__qualname__)
        function.__signature__ = inspect.signature(target)
        known[id(target)] = function
    return known[id(target)]


def _load_settings():
    from django.conf import settings

    return broker.celery_settings(settings.REDIS['tasks'], get_config(), settings.TIME_ZONE)


TRANSPORT_ALIASES.update(broker.TRANSPORTS)
forget_ids()
spell_results(NetBoxCelery)

app = NetBoxCelery('netbox_celery')
app.set_default()
app.add_defaults(_load_settings)
app.autodiscover_tasks(host.plugin_packages)

from .engine import signals  # noqa: E402 - connects itself to Celery's signals

app.steps['worker'].add(signals.Registration)
app.steps['consumer'].update((
    signals.Heartbeat, signals.Undecodable, OneSpelling, RefuseReserved, 'netbox_celery.engine.worker:Messages'
))
