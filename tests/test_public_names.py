"""The public names: those on which plugins, API clients and operators rely.

The tables are promises. If a name is removed or spelled differently, a plugin or a script of someone else breaks.
"""
import difflib
import inspect
import re
from dataclasses import fields, is_dataclass
from functools import cached_property
from importlib import import_module, metadata
from pathlib import Path

import pytest
from django.db.models import Model
from django.urls import URLPattern, URLResolver

from netbox_celery import models, urls
from netbox_celery.api.urls import router
from netbox_celery.config import Config
from netbox_celery.engine.calls.options import OWN_NAMES
from netbox_celery.engine.schedules.firing import DUE_HEADER
from netbox_celery.engine.store.headers import HEADER
from utilities.choices import ChoiceSet

ROOT = Path(__file__).parents[1]
PACKAGE = 'netbox_celery'

#: The pages that document the names of each table.
PAGES = {
    'netbox_celery.tasks': ['docs/tasks.md', 'docs/concurrency.md', 'docs/retries.md'],
    'netbox_celery.models': ['docs/tasks.md', 'docs/schedules.md', 'docs/rest.md'],
    'netbox_celery.engine.runs.tracked': ['docs/tasks.md'],
    'netbox_celery.engine.exceptions': ['docs/tasks.md', 'docs/concurrency.md'],
    'netbox_celery.choices': ['docs/how-it-works.md', 'docs/schedules.md', 'docs/tasks.md'],
    'netbox_celery.testing': ['docs/testing.md'],
    'netbox_celery.config': ['docs/installation.md'],
    'netbox_celery.celery': ['docs/tasks.md', 'docs/testing.md'],
    'netbox_celery.scheduler': ['docs/schedules.md'],
    'netbox_celery.broker': ['docs/installation.md'],
    'netbox_celery.commands': ['docs/commands.md'],
    'SETTINGS': ['docs/installation.md'],
    'OPTIONS': ['docs/tasks.md', 'docs/schedules.md'],
    'REST': ['docs/rest.md'],
    'VIEWS': ['docs/user-interface.md'],
    'OTHERS': ['docs/permissions.md', 'docs/commands.md', 'docs/schedules.md', 'docs/testing.md'],
}

#: Of modules that are public in part, the names that the documentation gives.
PARTS = {
    'netbox_celery.commands': ('CommandFailed',),
    'netbox_celery.config': ('Config', 'get_config'),
    'netbox_celery.engine.exceptions': ('BodyInterrupted', 'DatabaseReadOnly', 'NotRerunnable'),
    'netbox_celery.engine.runs.tracked': ('TrackedResult',),
}

#: What each module exports. A class is followed by its fields, attributes and methods, including those of base classes
#: of this package.
MODULES = {
    'netbox_celery.tasks': '''
CeleryBaseTask
    abstract
    apply(args, kwargs, **options)
    apply_async(args, kwargs, **options)
    apply_async_and_get_result(args, kwargs, timeout, propagate, **options)
    apply_async_on_commit(args, kwargs, using, **options)
    before_start(task_id, args, kwargs)
    celery_result
    concurrency_key
    default_retry_delays
    delay(*args, **kwargs)
    delay_on_commit(*args, **kwargs)
    hears_of_calls
    ignore_task_after_success
    ignore_task_timedelta
    is_cancelled()
    is_processing(args, kwargs)
    limit
    log(message, level, grouping, obj)
    log_debug(message, grouping, obj)
    log_failure(message, grouping, obj)
    log_info(message, grouping, obj)
    log_success(message, grouping, obj)
    log_warning(message, grouping, obj)
    netbox_track
    on_bound(app)
    on_conflict
    on_invocation_apply(invocation_id, args, kwargs, options, result)
    on_invocation_ignored(invocation_id, args, kwargs, task_id, options, result)
    on_invocation_timeout(invocation_id, args, kwargs, task_id, ex, options, result)
    on_invocation_trigger(invocation_id, args, kwargs, task_id, options, result)
    on_invocation_unique(invocation_id, args, kwargs, task_id, options, result)
    on_task_failure(task_id, args, kwargs, exc, einfo)
    on_task_retry(task_id, args, kwargs, exc, eta)
    on_task_start(task_id, args, kwargs)
    on_task_success(task_id, args, kwargs, retval)
    override_max_retries
    progress(value, value_max, step)
    retry(args, kwargs, exc, throw, eta, countdown, max_retries, default_retry_delays, **options)
    schedule
    set_ignore_task(ignore_task_timedelta)
    stale_time_limit
    strategy_claims
    takes_task_id
    throws
    unique
    unique_key_generator
TaskConflict
    task_id
TaskFailed
default_unique_key_generator(task, prefix, task_args, task_kwargs)
get_django_command_task(command)
netbox_celery_task(*args, **options)
''',
    'netbox_celery.models': '''
CeleryLogEntry
    attempt
    clean()
    created
    get_absolute_url()
    get_level_color()
    grouping
    id
    is_object_gone
    level
    message
    object
    object_id
    object_type
    objects
    result
CeleryResult
    args
    attempt
    attempts
    attempts_without_quote
    branch
    cancel(user)
    cancelled
    celery_name
    claims
    clean()
    completed
    concurrency_key
    concurrency_limit
    concurrency_slot
    created
    culprit_id
    custom_field_data
    data
    display_args
    display_kwargs
    display_options
    duration
    enqueue(task_or_name, args, kwargs, user, instance, schedule_at, queue, **options)
    enqueue_job(celery_name, user, celery_kwargs, task_id, args, kwargs)
    enqueue_many(task_or_name, calls, user, instance, schedule_at, queue, **options)
    error
    error_without_quote
    exact_call
    exact_result
    expires
    get_status_color()
    group_id
    holder
    id
    in_backend
    is_cancelling
    is_finished
    is_object_gone
    is_rerunnable
    joined
    kwargs
    last_updated
    message
    name
    nesting
    object
    object_id
    object_type
    objects
    options
    parent_id
    percentage
    queue
    quoted_id
    reason
    request_id
    rerun(user)
    result
    root_id
    schedule
    scheduled
    sent
    serialize_object(exclude)
    stale_after
    started
    status
    step
    tags
    task_id
    traceback
    user
    value
    value_max
    worker
CelerySchedule
    args
    at
    branch
    clean()
    clean_fields(exclude)
    clone()
    created
    crontab
    custom_field_data
    description
    display_args
    display_kwargs
    display_options
    due_times(after)
    enabled
    end
    expires
    get_kind_color()
    get_missed_color()
    get_origin_color()
    get_overlap_color()
    hides(field)
    id
    in_words
    interval
    is_object_gone
    is_read_only
    kind
    kwargs
    last_run
    last_updated
    missed
    missed_max
    name
    next_run
    object
    object_id
    object_type
    objects
    options
    origin
    overlap
    owner
    present
    priority
    queue
    run_now(user)
    save(*args, update_fields, **kwargs)
    serialize_object(exclude)
    start
    stopped
    tags
    task
    timezone
CeleryTask
    created
    custom_field_data
    defaults
    description
    documentation
    enabled
    id
    last_seen
    last_updated
    name
    objects
    parameters
    plugin
    present
    tags
CeleryWorker
    autoscale
    concurrency
    display_concurrency
    get_absolute_url()
    heartbeat
    host
    id
    is_alive
    key
    lost_after
    name
    not_loaded
    objects
    package_versions
    pid
    pool
    queues
    started
    stopped
    versions
IgnoreWindow
    key
    objects
    task_id
    until
Lease
    holder
    name
    objects
    until
''',
    'netbox_celery.engine.runs.tracked': '''
TrackedResult
    canceled(error)
    error(error, traceback)
    id
    increment_value(n)
    pk
    refresh_from_db()
    row
    success(value)
    task_id
    update(value, value_max, step, data)
    update_value(value, value_step, rate_limit)
''',
    'netbox_celery.engine.exceptions': '''
BodyInterrupted
DatabaseReadOnly
    sqlstate
NotRerunnable
''',
    'netbox_celery.choices': '''
LogLevelChoices
    CHOICES
    LEVEL_CRITICAL = 50
    LEVEL_DEBUG = 10
    LEVEL_FAILURE = 40
    LEVEL_INFO = 20
    LEVEL_SUCCESS = 25
    LEVEL_WARNING = 30
ResultReasonChoices
    CHOICES
    REASON_BRANCH_NOT_READY = 'branch_not_ready'
    REASON_CANCELLED = 'cancelled'
    REASON_EXPIRED = 'expired'
    REASON_IGNORE_WINDOW = 'ignore_window'
    REASON_INVALID_CALL = 'invalid_call'
    REASON_JOINED = 'joined'
    REASON_MAX_RETRIES = 'max_retries'
    REASON_NOT_PERMITTED = 'not_permitted'
    REASON_PUBLISH_FAILED = 'publish_failed'
    REASON_QUEUED = 'queued'
    REASON_REJECTED = 'rejected'
    REASON_REPLACED = 'replaced'
    REASON_SKIPPED = 'skipped'
    REASON_SOFT_TIME_LIMIT = 'soft_time_limit'
    REASON_TASK_DISABLED = 'task_disabled'
    REASON_TERMINATED = 'terminated'
    REASON_TIME_LIMIT = 'time_limit'
    REASON_UNREGISTERED = 'unregistered'
    REASON_UPSTREAM_FAILED = 'upstream_failed'
    REASON_WORKER_LOST = 'worker_lost'
ResultStatusChoices
    CHOICES
    FINISHED
    STATUS_COMPLETED = 'completed'
    STATUS_ERRORED = 'errored'
    STATUS_FAILED = 'failed'
    STATUS_IGNORED = 'ignored'
    STATUS_PENDING = 'pending'
    STATUS_RETRYING = 'retrying'
    STATUS_REVOKED = 'revoked'
    STATUS_RUNNING = 'running'
    STATUS_SCHEDULED = 'scheduled'
    UNFINISHED
    WAITING
ScheduleKindChoices
    CHOICES
    KIND_CRONTAB = 'crontab'
    KIND_INTERVAL = 'interval'
    KIND_ONCE = 'once'
ScheduleMissedChoices
    CHOICES
    MISSED_RUN_ALL = 'run_all'
    MISSED_RUN_ONCE = 'run_once'
    MISSED_SKIP = 'skip'
ScheduleOriginChoices
    CHOICES
    ORIGIN_CODE = 'code'
    ORIGIN_SETTINGS = 'settings'
    ORIGIN_USER = 'user'
ScheduleOverlapChoices
    CHOICES
    OVERLAP_ALLOW = 'allow'
    OVERLAP_QUEUE = 'queue'
    OVERLAP_REPLACE = 'replace'
    OVERLAP_SKIP = 'skip'
TrackChoices
    CHOICES
    TRACK_ALL = 'all'
    TRACK_BASE = 'base'
''',
    'netbox_celery.testing': '''
TaskCall
    args
    headers
    kwargs
    name
    queue
    row
    run()
    task_id
TaskError
TaskRun
    calls
    error
    exception
    log
    messages
    raise_for_error()
    reason
    result
    row
    run_calls()
    status
    task_id
    traceback
run_task(task, *args, **kwargs)
''',
    'netbox_celery.config': '''
Config
    allowed_queues
    broker_url
    celery
    command_tasks
    flush_interval
    from_dict(user_config)
    heartbeat_interval
    key_prefix
    log_level
    log_lines
    log_message_length
    payload_length
    result_backend
    retention
    sweep_interval
    track
    worker_lost_after
get_config
''',
    'netbox_celery.celery': '''
NetBoxCelery
    Worker
    amqp_cls
    bugreport()
    control_cls
    finalize(auto)
    loader_cls
    registry_cls
    send_task(name, args, kwargs, **options)
    task_cls
app
''',
    'netbox_celery.scheduler': '''
DatabaseScheduler
    apply_async(entry, producer, advance, **kwargs)
    close()
    info
    leadership
    max_interval
    setup_schedule()
    tick(*args, **kwargs)
''',
    'netbox_celery.broker': '''
celery_settings(redis, config, timezone)
speaks_redis(url)
taken_keys(config)
''',
    'netbox_celery.commands': '''
CommandFailed
''',
}

#: The settings, `PLUGINS_CONFIG["netbox_celery"]`.
SETTINGS = '''
allowed_queues
broker_url
celery
command_tasks
flush_interval
heartbeat_interval
key_prefix
log_level
log_lines
log_message_length
payload_length
result_backend
retention
sweep_interval
track
worker_lost_after
'''

#: Options of tasks and calls, and headers of messages.
OPTIONS = '''
netbox_data
netbox_kwargs
netbox_name
netbox_object
netbox_schedule
netbox_tags
netbox_track
netbox_user
netbox_value_max
header netbox_celery
header netbox_celery_due
'''

#: REST, under `/api/plugins/celery/`: each route with its names, and the names of its actions.
REST = '''
log-entries/  celerylogentry
results/  celeryresult
    cancel/  cancel
    logs/  logs
    rerun/  rerun
    workflow/  workflow
schedules/  celeryschedule
    preview/  preview
    run/  run
    take-over/  take-over
tasks/  celerytask
    run/  run
workers/  celeryworker
'''

#: Names of pages, as `reverse('plugins:netbox_celery:...')` takes them.
VIEWS = '''
celeryresult
celeryresult_bulk_cancel
celeryresult_bulk_delete
celeryresult_bulk_rerun
celeryresult_cancel
celeryresult_cancel_workflow
celeryresult_changelog
celeryresult_changes
celeryresult_delete
celeryresult_journal
celeryresult_list
celeryresult_log
celeryresult_log_download
celeryresult_log_groups
celeryresult_log_lines
celeryresult_rerun
celeryresult_workflow
celeryschedule
celeryschedule_add
celeryschedule_bulk_delete
celeryschedule_bulk_edit
celeryschedule_bulk_import
celeryschedule_bulk_rename
celeryschedule_changelog
celeryschedule_delete
celeryschedule_disable
celeryschedule_edit
celeryschedule_enable
celeryschedule_journal
celeryschedule_list
celeryschedule_preview
celeryschedule_run
celeryschedule_runs
celeryschedule_take_over
celerytask
celerytask_bulk_delete
celerytask_bulk_edit
celerytask_changelog
celerytask_delete
celerytask_edit
celerytask_journal
celerytask_list
celerytask_run
celeryworker
celeryworker_list
'''

#: Permissions besides view, add, change and delete, commands of `netbox`, and entry points.
OTHERS = '''
CeleryResult: cancel
CeleryResult: rerun
CeleryTask: run
netbox celery_prune
pytest11: netbox_celery = netbox_celery.pytest_plugin
'''


def parameters(function):
    """Return the names of a function's parameters, without `self`."""
    marks = {inspect.Parameter.VAR_POSITIONAL: '*', inspect.Parameter.VAR_KEYWORD: '**'}
    return ', '.join(
        marks.get(parameter.kind, '') + name for name, parameter in inspect.signature(function).parameters.items()
        if name not in ('self', 'cls')
    )


def is_ours(obj):
    return getattr(obj, '__module__', '').split('.')[0] == PACKAGE


def members_of(cls):
    """Return the public members of a class, those of base classes of ours included, a line each."""
    found = set()
    for base in (base for base in cls.__mro__ if is_ours(base)):
        # Attributes that only objects have
        if inspect.isfunction(init := vars(base).get('__init__')) and not is_dataclass(base):
            found |= set(re.findall(r'^        self\.([a-z]\w*)(?:: .*)? = ', inspect.getsource(init), re.MULTILINE))
        annotated = {name for name in inspect.get_annotations(base) if not name.startswith('_')}
        found |= annotated
        for name, value in vars(base).items():
            value = value.__func__ if isinstance(value, classmethod | staticmethod) else value
            if name.startswith('_') or name in annotated or inspect.isclass(value):
                continue
            if inspect.isfunction(value):
                if is_ours(value):
                    found.add(f'{name}({parameters(value)})')
            elif issubclass(cls, ChoiceSet):
                if name.isupper():
                    found.add(f'{name} = {value!r}' if isinstance(value, int | str) else name)
            elif not issubclass(cls, Model) or isinstance(value, property | cached_property | bool):
                found.add(name)
    if issubclass(cls, Model):
        found |= {field.name for field in cls._meta.get_fields() if field.concrete or is_ours(field)}
        found |= {'objects'}
    return sorted(found)


def module_lines(name):
    """Return the lines of a module's table."""
    module = import_module(name)
    for exported in PARTS.get(name, module.__all__):
        value = getattr(module, exported)
        if inspect.isclass(value):
            yield exported
            yield from (f'    {member}' for member in members_of(value))
        else:
            yield f'{exported}({parameters(value)})' if inspect.isfunction(value) else exported


def view_names(patterns=urls.urlpatterns):
    for pattern in patterns:
        if isinstance(pattern, URLPattern):
            yield pattern.name
        elif isinstance(pattern, URLResolver):
            yield from view_names(pattern.url_patterns)


def rest_lines():
    for prefix, viewset, basename in router.registry:
        yield f'{prefix}/  {basename}'
        yield from sorted(f'    {action.url_path}/  {action.url_name}' for action in viewset.get_extra_actions())


def other_lines():
    for name in models.__all__:
        yield from (f'{name}: {codename}' for codename, __ in getattr(models, name)._meta.permissions)
    commands = sorted(path.stem for path in (ROOT / PACKAGE / 'management' / 'commands').glob('*.py'))
    yield from (f'netbox {name}' for name in commands if not name.startswith('_'))
    for point in metadata.distribution('netbox-celery').entry_points:
        yield f'{point.group}: {point.name} = {point.value}'


FOUND = {
    'SETTINGS': lambda: sorted(field.name for field in fields(Config)),
    'OPTIONS': lambda: [
        *sorted(f'netbox_{name}' for name in (*OWN_NAMES, 'kwargs')), f'header {HEADER}', f'header {DUE_HEADER}',
    ],
    'REST': rest_lines,
    'VIEWS': lambda: sorted(set(view_names())),
    'OTHERS': other_lines,
}


def check(table, pages, expected, found):
    expected, found = expected.strip('\n').splitlines(), list(found)
    if expected == found:
        return
    changes = '\n'.join(difflib.unified_diff(expected, found, 'table', 'code', lineterm='', n=0))
    pytest.fail(
        f'Public names have changed:\n{changes}\n\n'
        f'Plugins and scripts rely on them. If the change is not intended, restore the old name. If it is:\n'
        f'1. Update {table} in tests/{Path(__file__).name} to what the code has (the lines with "+").\n'
        f'2. Update the documentation: {", ".join(pages)}.\n'
        f'3. Add it to CHANGELOG.md. For a name that was removed, say what to use instead.',
        pytrace=False,
    )


@pytest.mark.parametrize('module', MODULES)
def test_modules(module):
    check(f'MODULES[{module!r}]', PAGES[module], MODULES[module], module_lines(module))


@pytest.mark.parametrize('table', FOUND)
def test_tables(table):
    check(table, PAGES[table], globals()[table], FOUND[table]())


def test_message():
    """It shows the added and removed names, and says which table and which pages to update."""
    with pytest.raises(pytest.fail.Exception) as caught:
        check('SETTINGS', ['docs/installation.md'], '\nold\nkept\n', ['kept', 'new'])
    message = str(caught.value)
    assert '-old' in message and '+new' in message and 'kept' not in message
    assert 'Update SETTINGS in tests/test_public_names.py' in message and 'docs/installation.md' in message


def test_pages():
    """The pages that a message names exist."""
    assert {page for pages in PAGES.values() for page in pages if not (ROOT / page).is_file()} == set()
    assert PAGES.keys() == MODULES.keys() | FOUND.keys()


def test_names_in_the_docs():
    """Each dotted name in the documentation exists."""
    pages = [ROOT / 'README.md', *(ROOT / 'docs').rglob('*.md')]
    # Without the IDs of system checks
    pattern = r'\bnetbox_celery(?:\.(?![EW]\d)\w+)+(?::\w+)?'
    named = {name for page in pages for name in re.findall(pattern, page.read_text())}
    assert len(named) > 15
    for name in sorted(named):
        assert exists(name), name


def exists(name):
    parts = name.replace(':', '.').split('.')
    for length in range(len(parts), 0, -1):
        try:
            value = import_module('.'.join(parts[:length]))
        except ImportError:
            continue
        try:
            for part in parts[length:]:
                value = getattr(value, part)
        except AttributeError:
            return False
        return True
    return False
