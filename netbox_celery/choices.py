"""The choice sets of the plugin: statuses and reasons of runs, log levels, and the settings of schedules."""
from django.utils.translation import gettext_lazy as _

from utilities.choices import Choice, ChoiceSet

__all__ = (
    'LogLevelChoices',
    'ResultReasonChoices',
    'ResultStatusChoices',
    'ScheduleKindChoices',
    'ScheduleMissedChoices',
    'ScheduleOriginChoices',
    'ScheduleOverlapChoices',
    'TrackChoices',
)


class ResultStatusChoices(ChoiceSet):
    """What a run is doing, or how it finished. Only `netbox_celery.engine.store.lifecycle` writes it."""
    STATUS_PENDING = 'pending'
    STATUS_SCHEDULED = 'scheduled'
    STATUS_RUNNING = 'running'
    STATUS_RETRYING = 'retrying'
    STATUS_COMPLETED = 'completed'
    STATUS_FAILED = 'failed'
    STATUS_ERRORED = 'errored'
    STATUS_REVOKED = 'revoked'
    STATUS_IGNORED = 'ignored'

    CHOICES = (
        Choice(STATUS_PENDING, _('Pending'), color='cyan', description=_('Waiting for a worker')),
        Choice(STATUS_SCHEDULED, _('Scheduled'), color='gray', description=_('Waiting for its start time')),
        Choice(STATUS_RUNNING, _('Running'), color='blue', description=_('Running on a worker')),
        Choice(STATUS_RETRYING, _('Retrying'), color='orange', description=_('Failed; will retry')),
        Choice(STATUS_COMPLETED, _('Completed'), color='green', description=_('Finished successfully')),
        Choice(STATUS_FAILED, _('Failed'), color='red', description=_('The task reported a failure')),
        Choice(STATUS_ERRORED, _('Errored'), color='red', description=_('Unhandled exception')),
        Choice(STATUS_REVOKED, _('Revoked'), color='yellow', description=_('Cancelled, terminated or expired')),
        Choice(STATUS_IGNORED, _('Ignored'), color='gray', description=_('The task chose not to run')),
    )

    #: A worker can still start these runs.
    WAITING = (STATUS_PENDING, STATUS_SCHEDULED, STATUS_RETRYING)
    #: Not finished yet.
    UNFINISHED = (*WAITING, STATUS_RUNNING)
    #: Final: a run never leaves these statuses.
    FINISHED = (STATUS_COMPLETED, STATUS_FAILED, STATUS_ERRORED, STATUS_REVOKED, STATUS_IGNORED)


class ResultReasonChoices(ChoiceSet):
    """Why a run has its status, if the status alone does not tell."""
    REASON_CANCELLED = 'cancelled'
    REASON_TERMINATED = 'terminated'
    REASON_EXPIRED = 'expired'
    REASON_TIME_LIMIT = 'time_limit'
    REASON_SOFT_TIME_LIMIT = 'soft_time_limit'
    REASON_WORKER_LOST = 'worker_lost'
    REASON_UNREGISTERED = 'unregistered'
    REASON_REJECTED = 'rejected'
    REASON_UPSTREAM_FAILED = 'upstream_failed'
    REASON_PUBLISH_FAILED = 'publish_failed'
    REASON_REPLACED = 'replaced'
    REASON_MAX_RETRIES = 'max_retries'
    REASON_QUEUED = 'queued'
    REASON_JOINED = 'joined'
    REASON_SKIPPED = 'skipped'
    REASON_IGNORE_WINDOW = 'ignore_window'
    REASON_NOT_PERMITTED = 'not_permitted'
    REASON_TASK_DISABLED = 'task_disabled'
    REASON_INVALID_CALL = 'invalid_call'
    REASON_BRANCH_NOT_READY = 'branch_not_ready'

    CHOICES = (
        Choice(REASON_CANCELLED, _('Cancelled'), description=_('Cancellation was requested')),
        Choice(REASON_TERMINATED, _('Terminated'), description=_('The worker process was terminated')),
        Choice(REASON_EXPIRED, _('Expired'), description=_('Not started before it expired')),
        Choice(REASON_TIME_LIMIT, _('Time limit'), description=_('Exceeded its hard time limit')),
        Choice(REASON_SOFT_TIME_LIMIT, _('Soft time limit'), description=_('Exceeded its soft time limit')),
        Choice(REASON_WORKER_LOST, _('Worker lost'), description=_('The worker was lost during the run')),
        Choice(REASON_UNREGISTERED, _('Unregistered'), description=_('Task is not registered on the worker')),
        Choice(REASON_REJECTED, _('Rejected'), description=_('The message was rejected')),
        Choice(REASON_UPSTREAM_FAILED, _('Upstream failed'), description=_('A task it depends on failed')),
        Choice(REASON_PUBLISH_FAILED, _('Publish failed'), description=_('The broker did not accept the message')),
        Choice(REASON_REPLACED, _('Replaced'), description=_('Replaced by another task')),
        Choice(REASON_MAX_RETRIES, _('Retries exhausted'), description=_('The last attempt failed')),
        Choice(REASON_QUEUED, _('Queued'), description=_('Waiting for another run with the same key')),
        Choice(REASON_JOINED, _('Joined'), description=_('Joined to an identical active run')),
        Choice(REASON_SKIPPED, _('Skipped'), description=_('A run with the same key was active')),
        Choice(
            REASON_IGNORE_WINDOW, _('Recently succeeded'), description=_('Skipped: succeeded within the ignore window')
        ),
        Choice(
            REASON_NOT_PERMITTED, _('Not permitted'), description=_('Schedule owner is not allowed to run the task')
        ),
        Choice(REASON_TASK_DISABLED, _('Task disabled'), description=_('Task is disabled')),
        Choice(REASON_INVALID_CALL, _('Invalid call'), description=_('Schedule timing or arguments are invalid')),
        Choice(REASON_BRANCH_NOT_READY, _('Branch not ready'), description=_('The branch was not ready')),
    )


class LogLevelChoices(ChoiceSet):
    """Levels of log entries: Python's levels where they exist, plus success and failure."""
    LEVEL_DEBUG = 10
    LEVEL_INFO = 20
    LEVEL_SUCCESS = 25
    LEVEL_WARNING = 30
    LEVEL_FAILURE = 40
    LEVEL_CRITICAL = 50

    CHOICES = (
        Choice(LEVEL_DEBUG, _('Debug'), color='teal'),
        Choice(LEVEL_INFO, _('Info'), color='cyan'),
        Choice(LEVEL_SUCCESS, _('Success'), color='green'),
        Choice(LEVEL_WARNING, _('Warning'), color='yellow'),
        Choice(LEVEL_FAILURE, _('Failure'), color='red'),
        Choice(LEVEL_CRITICAL, _('Critical'), color='purple'),
    )


class TrackChoices(ChoiceSet):
    """Which tasks have a row for each run (setting `track`)."""
    TRACK_BASE = 'base'
    TRACK_ALL = 'all'

    CHOICES = (
        Choice(TRACK_BASE, _('Tasks based on CeleryBaseTask')),
        Choice(TRACK_ALL, _('All tasks')),
    )


class ScheduleKindChoices(ChoiceSet):
    """The kinds of timing that a schedule can have."""
    KIND_CRONTAB = 'crontab'
    KIND_INTERVAL = 'interval'
    KIND_ONCE = 'once'

    CHOICES = (
        Choice(KIND_CRONTAB, _('Crontab'), color='blue', description=_('Cron expression')),
        Choice(KIND_INTERVAL, _('Interval'), color='cyan', description=_('Fixed interval')),
        Choice(KIND_ONCE, _('Once'), color='gray', description=_('A single run')),
    )


class ScheduleMissedChoices(ChoiceSet):
    """How runs are handled that were missed while beat was down."""
    MISSED_RUN_ONCE = 'run_once'
    MISSED_SKIP = 'skip'
    MISSED_RUN_ALL = 'run_all'

    CHOICES = (
        Choice(MISSED_RUN_ONCE, _('Run once'), color='blue', description=_('One run replaces all missed runs')),
        Choice(MISSED_SKIP, _('Skip'), color='gray', description=_('Missed runs are skipped')),
        Choice(MISSED_RUN_ALL, _('Run all'), color='orange', description=_('One run per missed time, up to the limit')),
    )


class ScheduleOverlapChoices(ChoiceSet):
    """What happens if a schedule is due while its previous run is still in progress."""
    OVERLAP_ALLOW = 'allow'
    OVERLAP_SKIP = 'skip'
    OVERLAP_QUEUE = 'queue'
    OVERLAP_REPLACE = 'replace'

    CHOICES = (
        Choice(OVERLAP_ALLOW, _('Allow'), color='green', description=_('Run concurrently')),
        Choice(OVERLAP_SKIP, _('Skip'), color='gray', description=_('Skip the new run')),
        Choice(OVERLAP_QUEUE, _('Queue'), color='blue', description=_('Queue the new run')),
        Choice(OVERLAP_REPLACE, _('Replace'), color='orange', description=_('Cancel the earlier run')),
    )


class ScheduleOriginChoices(ChoiceSet):
    """Where a schedule is defined."""
    ORIGIN_USER = 'user'
    ORIGIN_SETTINGS = 'settings'
    ORIGIN_CODE = 'code'

    CHOICES = (
        Choice(ORIGIN_USER, _('User'), color='blue', description=_('Created in NetBox')),
        Choice(ORIGIN_SETTINGS, _('Settings'), color='purple', description=_('`beat_schedule` in the Celery settings')),
        Choice(ORIGIN_CODE, _('Code'), color='teal', description=_('Decorator or class of the task')),
    )
