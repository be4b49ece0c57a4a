"""A plugin's tasks as a type checker sees them: what is right passes, and what is wrong is reported.

Each wrong use has a `type: ignore` with the code of its error, and mypy reports those that it does not need. The module
is not run.
"""
from datetime import datetime, timedelta
from typing import Any, assert_type

from celery import shared_task
from celery.schedules import crontab
from django.contrib.auth.models import User

from dcim.models import Device
from netbox_celery.celery import NetBoxCelery, app
from netbox_celery.choices import (
    LogLevelChoices,
    ResultReasonChoices,
    ResultStatusChoices,
    ScheduleKindChoices,
    ScheduleMissedChoices,
    ScheduleOriginChoices,
    ScheduleOverlapChoices,
    TrackChoices,
)
from netbox_celery.commands import CommandFailed
from netbox_celery.config import Config, get_config
from netbox_celery.models import CeleryLogEntry, CeleryResult, CelerySchedule, CeleryTask, CeleryWorker
from netbox_celery.tasks import (
    CeleryBaseTask,
    TaskConflict,
    TaskFailed,
    default_unique_key_generator,
    get_django_command_task,
    netbox_celery_task,
)
from netbox_celery.testing import TaskCall, TaskError, TaskRun, run_task

# Declaring a task


@netbox_celery_task
def shortest(self: CeleryBaseTask, task_id: str) -> None:
    self.log('Hello')


@netbox_celery_task(
    name='my_plugin:backup', queue='backup', time_limit=600, soft_time_limit=540.5, autoretry_for=(OSError,),
    retry_backoff=True, max_retries=None, default_retry_delays=(1, 2.5), acks_late=True, rate_limit='10/m',
    schedule=crontab(hour='3', minute='0'), throws=(ValueError,), pydantic=True,
    unique=True, stale_time_limit=timedelta(hours=1), unique_key_generator='my_plugin.keys.by_device',
    ignore_task_after_success=True, ignore_task_timedelta=300,
    netbox_name='Backup', netbox_value_max=100, netbox_tags=['nightly'], netbox_kwargs={'data': {'a': 1}},
)
def backup(self: CeleryBaseTask, task_id: str, device_id: int, *, full: bool = False) -> int:
    return device_id


@netbox_celery_task(name='my_plugin:push', concurrency_key='device-{device_id}', limit=2, on_conflict='queue')
def push(self: CeleryBaseTask, task_id: str, device_id: int) -> None:
    raise TaskFailed('No answer')


@netbox_celery_task(name='my_plugin:unbound', bind=False)
def unbound(task_id: str, name: str = 'World') -> str:
    return name


@shared_task(name='my_plugin:celery', base=CeleryBaseTask, bind=True)  # type: ignore[untyped-decorator]
def by_celery(self: CeleryBaseTask, task_id: str) -> None:
    self.log('Celery has no types')


class Careful(CeleryBaseTask):
    """A class of one's own has attributes of its own, which its decorator takes."""
    abstract = True
    acks_late = True
    default_retry_delays = (1, 2, 3)
    stale_time_limit = 60
    on_conflict = 'replace'
    vendor: str = ''

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        super().before_start(task_id, args, kwargs)

    def on_invocation_apply(self, invocation_id: str, args: Any, kwargs: Any, options: Any, result: Any) -> None:
        super().on_invocation_apply(invocation_id, args, kwargs, options, result)

    def on_task_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        super().on_task_start(task_id, args, kwargs)

    def on_task_failure(self, task_id: str, args: Any, kwargs: Any, exc: BaseException, einfo: Any) -> None:
        self.log_failure(exc)

    def on_failure(self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """One of Celery's handlers."""


@netbox_celery_task(name='my_plugin:careful', base=Careful, vendor='acme')
def careful(self: Careful, task_id: str) -> str:
    return self.vendor


@netbox_celery_task(name='my_plugin:careful_unbound', base=Careful, bind=False)
def careful_unbound(task_id: str) -> None:
    ...


assert_type(shortest, CeleryBaseTask)
assert_type(backup, CeleryBaseTask)
assert_type(unbound, CeleryBaseTask)
assert_type(careful, Careful)
assert_type(careful_unbound, Careful)
assert_type(careful.vendor, str)
assert_type(careful.limit, int)
assert_type(get_django_command_task('clearsessions'), CeleryBaseTask)


@netbox_celery_task(name='my_plugin:wrong', max_retrys=5)  # type: ignore[call-overload, untyped-decorator]
def misspelled_option(self: CeleryBaseTask, task_id: str) -> None:
    ...


@netbox_celery_task(name='my_plugin:wrong', netbox_label='a')  # type: ignore[call-overload, untyped-decorator]
def unknown_option_of_ours(self: CeleryBaseTask, task_id: str) -> None:
    ...


@netbox_celery_task(name='my_plugin:wrong', on_conflict='jion')  # type: ignore[call-overload, untyped-decorator]
def misspelled_value(self: CeleryBaseTask, task_id: str) -> None:
    ...


@netbox_celery_task(name='my_plugin:wrong', time_limit='600')  # type: ignore[call-overload, untyped-decorator]
def wrong_type(self: CeleryBaseTask, task_id: str) -> None:
    ...


@netbox_celery_task(name='my_plugin:wrong')  # type: ignore[arg-type]
def without_task_id(self: CeleryBaseTask) -> None:
    ...


@netbox_celery_task(name='my_plugin:wrong')  # type: ignore[arg-type]
def task_id_as_number(self: CeleryBaseTask, task_id: int) -> None:
    ...


@netbox_celery_task(name='my_plugin:wrong', bind=False)  # type: ignore[arg-type]
def self_though_not_bound(self: CeleryBaseTask, task_id: str) -> None:
    ...


class Careless(CeleryBaseTask):
    on_conflict = 'jion'  # type: ignore[assignment]
    limit = '1'  # type: ignore[assignment]
    stale_time_limit = 'an hour'  # type: ignore[assignment]

    def before_start(self, task_id: int, args: Any, kwargs: Any) -> None:  # type: ignore[override]
        ...

    def log(self, message: str) -> None:  # type: ignore[override]
        ...


# Calling it

def call(device: Device, user: User) -> None:
    backup.delay(1, full=True, netbox_name='A backup').get()
    backup.delay_on_commit(1)
    backup.apply_async(
        (1,), {'full': True}, countdown=60, expires=3600, queue='slow', priority=0, link=shortest.s(), headers={'a': 1},
        task_id='x', netbox_object=device, netbox_user=user, netbox_track=True, ignore_result=True, unique=False,
    )
    backup.apply_async([1], eta=datetime(2030, 1, 1), netbox_object=('dcim.device', 7), expires=datetime(2030, 1, 2))
    backup.apply_async_on_commit((1,), using='default', countdown=1)
    backup.apply_async_and_get_result(kwargs={'device_id': 1}, timeout=60, propagate=False, queue='slow')
    backup.apply((1,))
    backup.s(1) | backup.si(2)  # Celery's
    assert_type(backup.is_processing((1,)), bool)
    # Options that are put together at runtime
    options: dict[str, Any] = {'queue': 'slow'}
    backup.apply_async((1,), **options)

    backup.apply_async((1,), coundown=60)  # type: ignore[call-arg]
    backup.apply_async((1,), netbox_label='a')  # type: ignore[call-arg]
    backup.apply_async(1)  # type: ignore[arg-type]
    backup.apply_async('1')  # type: ignore[arg-type]
    backup.apply_async((1,), countdown='60')  # type: ignore[arg-type]
    backup.apply_async((1,), on_conflict='jion')  # type: ignore[arg-type]
    backup.apply_async((1,), netbox_value_max='100')  # type: ignore[arg-type]
    backup.apply_async_on_commit((1,), usng='default')  # type: ignore[call-arg]
    backup.apply_async_and_get_result((1,), timeout='60')  # type: ignore[arg-type]
    backup.is_processing(1)  # type: ignore[arg-type]
    get_django_command_task(clearsessions=True)  # type: ignore[call-arg]


def call_from_netbox(device: Device, user: User) -> CeleryResult:
    run = CeleryResult.enqueue(
        backup, args=(1,), kwargs={'full': True}, user=user, instance=device, schedule_at=datetime(2030, 1, 1),
        queue='slow', netbox_name='A backup', countdown=60,
    )
    assert_type(run, CeleryResult)
    for each in CeleryResult.enqueue_many('my_plugin:backup', [(1,), {'device_id': 2}, ((3,), {'full': True})]):
        each.cancel(user)
    assert_type(CeleryResult.enqueue_job('my_plugin:backup', user, {'queue': 'slow'}, args=(1,)), CeleryResult)
    again = run.rerun(user=user)
    assert_type(again, CeleryResult)
    assert_type(run.cancel(user), bool)
    assert_type(run.is_finished, bool)
    schedule: CelerySchedule = CelerySchedule.objects.get(name='Nightly')
    assert_type(schedule.run_now(user), CeleryResult)
    task: CeleryTask = CeleryTask.objects.get(name='my_plugin:backup')
    worker: CeleryWorker = CeleryWorker.objects.get(name=task.name)
    line: CeleryLogEntry = CeleryLogEntry.objects.filter(result=again)[0]

    CeleryResult.enqueue(backup, args=(1,), kwargs=[1])  # type: ignore[arg-type]
    CeleryResult.enqueue(backup, schedule_at='tomorrow')  # type: ignore[arg-type]
    CeleryResult.enqueue(backup, (1,))  # type: ignore[call-arg]
    run.cancel(users=user)  # type: ignore[call-arg]
    return run if worker.is_alive or line.message else again


def conflict() -> str:
    try:
        push.delay(1)
    except TaskConflict as exc:
        return str(exc.task_id)
    except CommandFailed:
        ...
    key: str = default_unique_key_generator(push, 'unique', (1,), {})
    return key


# In the body

@netbox_celery_task(name='my_plugin:body')
def body(self: CeleryBaseTask, task_id: str, devices: list[int]) -> dict[str, int]:
    self.log('Started', level=LogLevelChoices.LEVEL_INFO, grouping='main', obj=Device())
    self.log_debug('a')
    self.log_info('a', 'grouping')
    self.log_success('a')
    self.log_warning('a', obj=None)
    self.log_failure(ValueError('a'))
    self.progress(1, value_max=len(devices), step='first')
    self.update_state(state='PROGRESS', meta={'percent': 40})
    self.set_ignore_task(timedelta(hours=1))
    self.set_ignore_task()
    assert_type(self.is_cancelled(), bool)
    row = self.celery_result
    if row is not None:
        row.update(value=1, value_max=2, step='first', data={'a': 1})
        row.increment_value(2)
        row.update_value(1, value_step=10, rate_limit=0.5)
        row.success({'a': 1})
        row.error('No answer')
        row.canceled()
        row.refresh_from_db()
    if self.request.retries < 3:
        raise self.retry(countdown=60, exc=ValueError('a'), default_retry_delays=[1, 2])

    self.celery_result.update(value=1)  # type: ignore[union-attr]
    self.log()  # type: ignore[call-arg]
    self.log('a', level='info')  # type: ignore[arg-type]
    self.log('a', group='main')  # type: ignore[call-arg]
    self.log_info('a', level=20)  # type: ignore[call-arg]
    self.progress('half')  # type: ignore[arg-type]
    self.progress(1, maximum=2)  # type: ignore[call-arg]
    self.set_ignore_task('an hour')  # type: ignore[arg-type]
    self.retry(eta=60)  # type: ignore[arg-type]
    return {'devices': len(devices)}


# Testing it

def test_backup() -> None:
    run = run_task(backup, 1, full=True)
    assert_type(run, TaskRun)
    assert_type(run_task('my_plugin:backup', 1), TaskRun)
    assert_type(run.raise_for_error(), TaskRun)
    assert_type(run.status, str)
    assert_type(run.reason, str)
    assert_type(run.error, str)
    assert_type(run.traceback, str)
    assert_type(run.messages, list[str])
    assert_type(run.log, list[CeleryLogEntry])
    assert_type(run.row, CeleryResult)
    assert_type(run.calls, list[TaskCall])
    assert_type(run.run_calls(), list[TaskRun])
    assert_type(run.exception, BaseException | None)
    assert_type(run.calls[0].run(), TaskRun)
    assert_type(run.calls[0].row, CeleryResult)
    assert_type(run.calls[0].name, str)
    assert_type(run.calls[0].args, list[Any])
    assert_type(run.calls[0].kwargs, dict[str, Any])
    assert_type(run.calls[0].queue, str)
    try:
        run.raise_for_error()
    except TaskError:
        ...

    run.state  # type: ignore[attr-defined]
    run_task(task=backup)  # type: ignore[call-arg]
    run.messages.append(1)  # type: ignore[arg-type]


# Settings and names

def look() -> None:
    assert_type(app, NetBoxCelery)
    assert_type(get_config(), Config)
    assert_type(get_config().retention, int | None)
    assert_type(get_config().flush_interval, float)
    assert_type(get_config().allowed_queues, list[str])
    assert_type(Config.from_dict({'log_lines': 5}), Config)
    assert_type(ResultStatusChoices.STATUS_COMPLETED, str)
    assert_type(ResultReasonChoices.REASON_CANCELLED, str)
    assert_type(LogLevelChoices.LEVEL_SUCCESS, int)
    assert_type(ScheduleKindChoices.KIND_CRONTAB, str)
    assert_type(ScheduleMissedChoices.MISSED_SKIP, str)
    assert_type(ScheduleOriginChoices.ORIGIN_USER, str)
    assert_type(ScheduleOverlapChoices.OVERLAP_QUEUE, str)
    assert_type(TrackChoices.TRACK_ALL, str)

    Config(log_line=5)  # type: ignore[call-arg]
    Config(log_lines='5')  # type: ignore[arg-type]
    get_config().log_lines = 5  # type: ignore[misc]
    get_config().log_line  # type: ignore[attr-defined]
