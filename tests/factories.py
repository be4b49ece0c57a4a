"""Rows for tests, as the engine would have written them."""
from uuid import uuid4

from django.utils import timezone

from core.models import ObjectType
from netbox_celery.choices import ResultStatusChoices
from netbox_celery.models import CeleryLogEntry, CeleryResult, CelerySchedule, CeleryTask, CeleryWorker
from users.models import ObjectPermission

__all__ = (
    'grant',
    'make_log',
    'make_result',
    'make_schedule',
    'make_task',
    'make_worker',
)

HELLO_WORLD = 'netbox_example_plugin:hello_world'


def make_result(status=ResultStatusChoices.STATUS_COMPLETED, **columns):
    """Make a run, by default a finished one."""
    columns = {'task_id': uuid4(), 'celery_name': HELLO_WORLD, 'name': 'Hello', 'status': status, **columns}
    if status in ResultStatusChoices.FINISHED:
        columns.setdefault('completed', timezone.now())
    return CeleryResult.objects.create(**columns)


def make_log(result, *lines, **columns):
    """Make lines in a run's log: messages, or pairs of a level and a message."""
    entries = []
    for line in lines:
        level, message = (20, line) if isinstance(line, str) else line
        entries.append(CeleryLogEntry.objects.create(result=result, level=level, message=message, **columns))
    return entries


def make_task(name=HELLO_WORLD, **columns):
    """Make a task of the catalogue, by default that of `hello_world`."""
    parameters = [{
        'name': 'name', 'kind': 'positional_or_keyword', 'annotation': 'str', 'required': False, 'default': 'World',
    }]
    columns = {'plugin': name.partition(':')[0], 'parameters': parameters, 'last_seen': timezone.now(), **columns}
    return CeleryTask.objects.create(name=name, **columns)


def make_schedule(name='Hello', task=None, **columns):
    """Make a schedule, by default of `hello_world` and every hour."""
    if task is None:
        task = CeleryTask.objects.filter(name=HELLO_WORLD).first() or make_task()
    if 'kind' not in columns:
        columns.setdefault('crontab', '0 * * * *')
    return CelerySchedule.objects.create(name=name, task=task, **columns)


def make_worker(name='celery@test', **columns):
    """Make a worker that is online."""
    now = timezone.now()
    columns = {
        'key': uuid4(), 'host': name.partition('@')[2], 'pid': 4711, 'pool': 'prefork', 'concurrency': 2,
        'queues': ['celery'], 'started': now, 'heartbeat': now, **columns,
    }
    return CeleryWorker.objects.create(name=name, **columns)


def grant(user, *models, actions=('view',), constraints=None):
    """Give a user permission for actions on models, restricted by constraints."""
    permission = ObjectPermission.objects.create(
        name=f'{user}: {", ".join(actions)}', actions=list(actions), constraints=constraints
    )
    permission.users.add(user)
    permission.object_types.set([ObjectType.objects.get_for_model(model) for model in models])
    return permission
