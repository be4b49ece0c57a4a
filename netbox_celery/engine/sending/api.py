"""The functions with which NetBox code runs tasks: `CeleryResult.enqueue` and `CeleryResult.enqueue_many`."""
from functools import partial

from celery.exceptions import CeleryError
from django.db import DEFAULT_DB_ALIAS
from django.db.models import BooleanField, Case, When

from ..app import get_app
from ..calls.ids import canonical_ids
from ..calls.policies import SETTINGS, has_policy
from ..catalogue.registry import get_task
from ..store.database import caller
from ..store.payload import is_uuid
from .bulk import checked, send_many

__all__ = (
    'enqueue',
    'enqueue_many',
)


def enqueue(task_or_name, *, args=(), kwargs=None, user=None, instance=None, schedule_at=None, queue=None, **options):
    """Run a task in the background and return its row (see `CeleryResult.enqueue`)."""
    from ...models import CeleryResult

    _refuse_eager(get_app())
    options = dict(canonical_ids(options))
    if options.get('task_id') and not is_uuid(options['task_id']):
        raise CeleryError(f'{task_or_name}: the ID of a run must be a UUID, not {options["task_id"]!r}')
    options |= _given(user, instance, schedule_at, queue)
    result = _caller(task_or_name)(args, kwargs, **options)
    # In the transaction of a branch, no other connection sees it before the commit
    row = CeleryResult.objects.using(caller().alias).filter(task_id=result.id).first()
    if row is None:
        raise CeleryError(f'{task_or_name} was sent as {result.id}, but has no row; see the log for the reason')
    row._state.db = DEFAULT_DB_ALIAS
    row.joined = getattr(result, 'netbox_joined', False)
    return row


def _refuse_eager(app):
    if app.conf.task_always_eager:
        raise CeleryError('With task_always_eager runs have no rows, so there is none to return: use apply_async()')


def _given(user, instance, schedule_at, queue):
    given = {'netbox_user': user, 'netbox_object': instance, 'eta': schedule_at, 'queue': queue}
    return {key: value for key, value in given.items() if value is not None} | {'netbox_track': True}


def _caller(task_or_name):
    """Return the function that sends a task: if it is registered here, its `apply_async`, which checks the arguments.
    """
    task = _task(task_or_name)
    if task is not None:
        return task.apply_async
    return partial(get_app().send_task, task_or_name)


def _task(task_or_name):
    return get_task(task_or_name) if isinstance(task_or_name, str) else task_or_name


def enqueue_many(task_or_name, calls, *, user=None, instance=None, schedule_at=None, queue=None, **options):
    """Run a task many times (see `CeleryResult.enqueue_many`)."""
    from ...models import CeleryResult

    _refuse_eager(app := get_app())
    options |= _given(user, instance, schedule_at, queue)
    task, rows = _task(task_or_name), CeleryResult.objects.using(caller().alias).order_by('pk')
    if has_policy(task, SETTINGS & options.keys()) or getattr(task, 'hears_of_calls', False):
        # Each call is admitted by itself, may join an active run, and has its hooks called
        call = _caller(task_or_name)
        results = [call(*arguments, **options) for arguments in checked(task, calls)]
        made = {result.id for result in results if not getattr(result, 'netbox_joined', False)}
        joined = {result.id for result in results} - made
        return _as_mains(rows.filter(task_id__in=made | joined).annotate(
            joined=Case(When(task_id__in=joined, then=True), default=False, output_field=BooleanField())
        ))
    return _as_mains(rows.filter(pk__in=send_many(app, task_or_name, calls, options)))


def _as_mains(rows):
    """Assign rows that were read in the transaction of a branch to main, where they are saved and read again."""
    if rows.db != DEFAULT_DB_ALIAS:
        for row in rows:
            row._state.db = DEFAULT_DB_ALIAS
    return rows
