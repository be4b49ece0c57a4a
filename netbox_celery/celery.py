"""The Celery app: `celery -A netbox_celery worker`, `beat`, `inspect`, ...

In NetBox's own processes (web, rqworker, shell) the plugin's configuration imports this module, which makes the app
the current one: `shared_task` binds to it. In the `celery` command it is the other way around: this module sets up
NetBox.
"""
import inspect
import os
from functools import cached_property, partial

import django
from celery import Celery
from celery.app.backends import by_url
from django.apps import apps

os.environ.setdefault('DJANGO_SETTINGS_MODULE', 'netbox.settings')
# NetBox's web process runs Django's system checks. A worker would spend 7 of its first 12 seconds on them.
os.environ.setdefault('CELERY_SKIP_CHECKS', '1')

if not apps.ready and not apps.loading:
    # The `celery` command imports this module first. Setting up NetBox calls the plugin's `ready()`, which imports this
    # module again, finds it partly initialized, and does nothing more.
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
    """A Celery app whose calls make rows and whose result backend records how they end."""

    amqp_cls = 'netbox_celery.engine.calls.queues:AMQP'
    registry_cls = 'netbox_celery.engine.catalogue.registry:Registry'
    task_cls = 'netbox_celery.engine.calls.oncommit:OnCommitTask'
    control_cls = 'netbox_celery.engine.sending.control:Control'
    loader_cls = 'netbox_celery.engine.catalogue.discovery:Loader'

    _is_finalizing = False

    @cached_property
    def Worker(self):
        return self.subclass_with_self('netbox_celery.engine.worker.messages:Worker')

    def send_task(self, name, args=None, kwargs=None, **options):
        """Send a task by name. `apply_async`, canvas, retries and beat all call this method.

        It takes `netbox_*` options in addition to Celery's own (see `netbox_celery.tasks`).
        """
        return send(self, partial(publish, self), name, args, kwargs, options)

    def __reduce__(self):
        # A spawned process (`worker_pool_start_method`) imports this app, with NetBox's settings and the signals that
        # track runs
        if self is globals().get('app'):
            return _app_of_process, (self._conf.changes if self.configured else self._preconf, identity.describe())
        return super().__reduce__()

    def _get_backend(self):
        backend, url = by_url(self.backend_cls or self.conf.result_backend, self.loader)
        return tracked_backend(backend)(app=self, url=url)

    def finalize(self, auto=False):
        """Make the tasks that decorators have collected (see `Celery.finalize`), and continue after one that fails."""
        if self.finalized and not self._is_finalizing:
            return
        self._is_finalizing = True
        try:
            super().finalize(auto)
        finally:
            self._is_finalizing = False

    def _task_from_fun(self, fun, **options):
        # Celery needs a name and annotations, as functions have them, and the name has to be an identifier
        if 'name' in options and not (inspect.isroutine(fun) and fun.__name__.isidentifier()):
            fun = _function(fun)
        if not self._is_finalizing:
            return super()._task_from_fun(fun, **options)
        if discovery.is_half(fun):
            return None
        known = set(registered(self))
        try:
            return super()._task_from_fun(fun, **options)
        except Exception as exc:  # noqa: BLE001 - options of a decorator, or a base class, may raise anything
            for name in set(registered(self)) - known:
                registered(self).pop(name, None)
            discovery.note_failure(f'{fun.__module__}:{fun.__qualname__}', exc)
            return None

    def bugreport(self):
        report = super().bugreport()
        lacking = '\n'.join(f'  {failure}' for failure in discovery.failures())
        return f'{report}\n\nmodules that could not be imported:\n{lacking}\n' if lacking else report


def _app_of_process(changes, of_worker):
    """Return the app of this process in place of one that was pickled in another, as a worker's is for its children.

    Args:
        changes: Settings that were set in the other process in addition to the configuration, as by the command line.
        of_worker: The worker of the other process (`Identity.describe`).
    """
    app.conf.update(changes)
    signals.join(app, of_worker)
    return app


def _function(target, known={}):
    """Return a function that calls an object (an instance, a `functools.partial`, a lambda); the same for each object.
    """
    def function(*args, **kwargs):
        return target(*args, **kwargs)

    if id(target) not in known:
        function.__module__, function.__doc__ = target.__module__, target.__doc__
        function.__qualname__ = getattr(target, '__qualname__', type(target).__qualname__)
        vars(function)['__signature__'] = inspect.signature(target)
        known[id(target)] = function
    return known[id(target)]


def _load_settings():
    from django.conf import settings

    return broker.celery_settings(settings.REDIS['tasks'], get_config(), settings.TIME_ZONE)


#: Changes in modules of Celery and Kombu, which apply to all their users in this process. Workers also change the pool
#: of processes (`engine.worker.pool`), commands of remote control (`engine.calls.ids`, `engine.calls.queues`), and the
#: handlers of tasks (`engine.runs.claim`).
PATCHES = (
    join_by_thread,  # permission to wait for results applies to one thread
    forget_ids,  # a chain can be started more than once
    partial(spell_results, NetBoxCelery),  # a result finds its run by any spelling of the ID
    # Patching a process for greenlets asks every object for its class, including Celery's proxy of the current app,
    # which then makes an app
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
