"""Updates the catalogue: rows for the tasks of this process, and for the schedules that code and settings declare."""
import logging
from datetime import UTC, datetime, timedelta
from functools import partial

from django.db import DataError, transaction

from ... import host
from ...models import CeleryTask
from ..app import get_app
from ..catalogue import discovery
from ..catalogue.registry import describe_task, registered_tasks
from . import sources

__all__ = (
    'sync_catalogue',
)

logger = logging.getLogger(__name__)

#: A task that no process had registered for this long is marked absent. Workers write every minute what they have.
ABSENT_AFTER = timedelta(minutes=10)

#: Errors of a description that a row cannot hold.
UNWRITABLE = (DataError, OverflowError, RecursionError, TypeError, ValueError)


def sync_catalogue() -> None:
    """Write which tasks this process has registered, and which schedules these and the settings declare."""
    app = get_app()
    now = datetime.now(UTC)
    tasks = registered_tasks()
    rows = {row.name: row for row in CeleryTask.objects.all()}
    described = {name: values for name, task in tasks.items() if (values := _described(task)) is not None}
    missing = [
        CeleryTask(name=name, last_seen=now, **values) for name, values in described.items() if name not in rows
    ]
    touched = [row.name for row in _create(missing)]
    for name, values in described.items():
        if name in rows:
            changed = {field: value for field, value in values.items() if getattr(rows[name], field) != value}
            if changed and _write(name, CeleryTask.objects.filter(pk=rows[name].pk).update, **changed):
                touched.append(name)
    CeleryTask.objects.filter(name__in=tasks).update(last_seen=now, present=True)
    # It is unknown which tasks this process would have of a plugin that it could not import
    CeleryTask.objects.filter(present=True, last_seen__lt=now - ABSENT_AFTER).exclude(name__in=tasks).exclude(
        plugin__in=discovery.failed_plugins()
    ).update(present=False)
    sources.sync(app, app.conf.beat_schedule)
    if touched:
        host.index_for_search(CeleryTask.objects.filter(name__in=touched))


def _described(task):
    """Return the columns of a task, or `None` if its code fails: the other tasks are written nevertheless."""
    try:
        return describe_task(task)
    except Exception:
        logger.exception('The task %s cannot be described', task.name)
        return None


def _create(rows):
    """Write new rows, one by one if they cannot be written together. Returns those that were written."""
    create = partial(CeleryTask.objects.bulk_create, ignore_conflicts=True)
    try:
        with transaction.atomic():
            create(rows)
    except UNWRITABLE:
        return [row for row in rows if _write(row.name, create, [row])]
    return rows


def _write(name, function, *args, **kwargs):
    """Write the description of a task, and return whether that succeeded."""
    try:
        with transaction.atomic():
            function(*args, **kwargs)
    except UNWRITABLE:
        logger.exception('The description of the task %s cannot be written', name)
        return False
    return True
