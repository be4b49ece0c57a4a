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
from celery.app.backends import by_url
from django.apps import apps

os.environ.setdefault('DJANGO_SETTINGS_MODULE', 'netbox.settings')
# NetBox's web process runs Django's system checks; a worker would spend 7 of its first 12 seconds on them.
os.environ.setdefault('CELERY_SKIP_CHECKS', '1')

if not apps.ready and not apps.loading:
    # The `celery` command imports this first. Setting NetBox up comes back here by the plugin's `ready()`, which finds
    # the module half done and leaves it at that.
    django.setup()

from . import broker, host  # noqa: E402
from .config import get_config  # noqa: E402
from .engine.app import bind  # noqa: E402
from .engine.calls.ids import OneSpelling, spell_results  # noqa: E402
from .engine.calls.queues import RefuseReserved  # noqa: E402
from .engine.catalogue import discovery  # noqa: E402
from .engine.identity import identity  # noqa: E402
from .engine.internals import drop_default_app, join_by_thread, registered  # noqa: E402
from .engine.results.layers import tracked_backend  # noqa: E402
from .engine.sending.enqueue import send  # noqa: E402
from .engine.sending.publish import publish  # noqa: E402
from .engine.workflows.canvas import forget_ids  # noqa: E402

__all__ = (
    'NetBoxCelery',
    'app',
)


class NetBoxCelery(Celery):
    """A Celery app whose calls make rows and whose result backend writes their ends."""

    amqp_cls = 'netbox_celery.engine.calls.queues:AMQP'
    registry_cls = 'netbox_celery.engine.catalogue.registry:Registry'
    task_cls = 'netbox_celery.engine.calls.oncommit:OnCommitTask'
    control_cls = 'netbox_celery.engine.sending.revoke:Control'
    loader_cls = 'netbox_celery.engine.catalogue.discovery:Loader'

    _is_finalizing = False

    @cached_property
    def Worker(self):
        return self.subclass_with_self('netbox_celery.engine.worker.messages:Worker')

    def send_task(self, name, args=None, kwargs=None, **options):
        """Send a task by name. `apply_async`, canvas, retries and beat all come through here.

        Takes the `netbox_*` options beside Celery's own (see `netbox_celery.tasks`).
        """
        return send(self, partial(publish, self), name, args, kwargs, options)

    def __reduce__(self):
        # A process that does not inherit this one's memory (`worker_pool_start_method`) has this app by an import, with
        # NetBox's settings and the signals that track runs
        if self is globals().get('app'):
            return _app_of_process, (self._conf.changes if self.configured else self._preconf, identity.describe())
        return super().__reduce__()

    def _get_backend(self):
        backend, url = by_url(self.backend_cls or self.conf.result_backend, self.loader)
        return tracked_backend(backend)(app=self, url=url)

    def finalize(self, auto=False):
        """Make tasks of what decorators have collected (see `Celery.finalize`), and go on after one that fails."""
        if self.finalized and not self._is_finalizing:
            return
        self._is_finalizing = True
        try:
            super().finalize(auto)
        finally:
            self._is_finalizing = False

    def _task_from_fun(self, fun, **options):
        # Celery takes what has a name and annotations, as functions have, and whose name is one in Python too.
        if 'name' in options and not (inspect.isroutine(fun) and fun.__name__.isidentifier()):
            fun = _function(fun)
        if not self._is_finalizing:
            return super()._task_from_fun(fun, **options)
        if discovery.is_half(fun):
            return None
        known = set(registered(self))
        try:
            return super()._task_from_fun(fun, **options)
        except Exception as exc:  # noqa: BLE001 - whatever a decorator's options, or a base class, lead to
            for name in set(registered(self)) - known:
                registered(self).pop(name, None)
            discovery.note_failure(f'{fun.__module__}:{fun.__qualname__}', exc)
            return None

    def bugreport(self):
        report = super().bugreport()
        lacking = '\n'.join(f'  {failure}' for failure in discovery.failures())
        return f'{report}\n\nmodules that could not be imported:\n{lacking}\n' if lacking else report


def _app_of_process(changes, of_worker):
    """Return the app of this process for one that was pickled in another, as a worker's is for its children.

    Args:
        changes: Settings that the other has been given beside its configuration, as by the command line.
        of_worker: Which worker that is (`Identity.describe`).
    """
    app.conf.update(changes)
    signals.join(app, of_worker)
    return app


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


#: What is changed in modules of Celery and Kombu, for all that use them in this process. Workers change more: the pool
#: of processes (`engine.worker.pool`), and commands of the remote control (`engine.calls.ids`).
PATCHES = (
    join_by_thread,  # a thread that may wait for results says so for itself alone
    forget_ids,  # a chain can be started more than once
    partial(spell_results, NetBoxCelery),  # a result knows its run by whatever spelling of the ID
    # Who patches this process for greenlets asks each object for its class, also Celery's stand-in for the current app,
    # which then makes one
    drop_default_app,
)
for patch in PATCHES:
    patch()

app = NetBoxCelery('netbox_celery')
bind(app)
app.set_default()
app.add_defaults(_load_settings)
app.autodiscover_tasks(host.plugin_packages)

from .engine.worker import signals  # noqa: E402 - connects itself to Celery's signals

app.steps['worker'].add(signals.Registration)
app.steps['consumer'].update((
    signals.Heartbeat, signals.Undecodable, OneSpelling, RefuseReserved, 'netbox_celery.engine.worker.messages:Messages'
))
