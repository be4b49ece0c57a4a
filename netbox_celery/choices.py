"""The vocabularies of the plugin: statuses of a run, reasons for its end, levels of its log, kinds of schedules."""
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
    """What a run is doing, or how it ended. `netbox_celery.engine.store.lifecycle` is the only writer."""
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
        Choice(STATUS_SCHEDULED, _('Scheduled'), color='gray', description=_('Will start at a set time')),
        Choice(STATUS_RUNNING, _('Running'), color='blue', description=_('A worker is executing it')),
        Choice(STATUS_RETRYING, _('Retrying'), color='orange', description=_('Failed, and will be tried again')),
        Choice(STATUS_COMPLETED, _('Completed'), color='green', description=_('Finished successfully')),
        Choice(STATUS_FAILED, _('Failed'), color='red', description=_('The task reported a failure')),
        Choice(STATUS_ERRORED, _('Errored'), color='red', description=_('Ended by an error it did not handle')),
        Choice(STATUS_REVOKED, _('Revoked'), color='yellow', description=_('Cancelled, terminated or expired')),
        Choice(STATUS_IGNORED, _('Ignored'), color='gray', description=_('The task chose not to run')),
    )

    #: A worker may still take these.
    WAITING = (STATUS_PENDING, STATUS_SCHEDULED, STATUS_RETRYING)
    #: Not ended yet.
    UNFINISHED = (*WAITING, STATUS_RUNNING)
    #: Ended: no transition leaves these.
    FINISHED = (STATUS_COMPLETED, STATUS_FAILED, STATUS_ERRORED, STATUS_REVOKED, STATUS_IGNORED)


class ResultReasonChoices(ChoiceSet):
    """Why a run is in its status, where the status alone does not say it."""
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
        Choice(REASON_CANCELLED, _('Cancelled'), description=_('Somebody cancelled it')),
        Choice(REASON_TERMINATED, _('Terminated'), description=_('Its process was terminated')),
        Choice(REASON_EXPIRED, _('Expired'), description=_('It was not started before it expired')),
        Choice(REASON_TIME_LIMIT, _('Time limit'), description=_('It ran longer than its hard time limit')),
        Choice(REASON_SOFT_TIME_LIMIT, _('Soft time limit'), description=_('It ran longer than its soft time limit')),
        Choice(REASON_WORKER_LOST, _('Worker lost'), description=_('The worker that ran it died')),
        Choice(REASON_UNREGISTERED, _('Unregistered'), description=_('The worker knows no task of this name')),
        Choice(REASON_REJECTED, _('Rejected'), description=_('Its message was rejected')),
        Choice(REASON_UPSTREAM_FAILED, _('Upstream failed'), description=_('A task that it depends on failed')),
        Choice(REASON_PUBLISH_FAILED, _('Publish failed'), description=_('The broker did not accept its message')),
        Choice(REASON_REPLACED, _('Replaced'), description=_('Another task took its place')),
        Choice(REASON_MAX_RETRIES, _('Retries exhausted'), description=_('Its last attempt failed as well')),
        Choice(REASON_QUEUED, _('In line'), description=_('It waits until a run with the same key has ended')),
        Choice(REASON_JOINED, _('Joined'), description=_('The same run was under way already')),
        Choice(REASON_SKIPPED, _('Skipped'), description=_('A run with the same key was under way')),
        Choice(REASON_IGNORE_WINDOW, _('Ignore window'), description=_('It succeeded only a short time ago')),
        Choice(REASON_NOT_PERMITTED, _('Not permitted'), description=_("Its schedule's owner may not run the task")),
        Choice(REASON_TASK_DISABLED, _('Task disabled'), description=_('Somebody disabled its task')),
        Choice(REASON_INVALID_CALL, _('Invalid call'), description=_('Its schedule cannot call the task like that')),
        Choice(REASON_BRANCH_NOT_READY, _('Branch not ready'), description=_('Its branch was not ready to run it')),
    )


class LogLevelChoices(ChoiceSet):
    """Levels of log entries. They are Python's where Python has one, with success and failure added."""
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
        Choice(TRACK_BASE, _('Tasks on CeleryBaseTask')),
        Choice(TRACK_ALL, _('All tasks')),
    )


class ScheduleKindChoices(ChoiceSet):
    """How it is said when a schedule is due."""
    KIND_CRONTAB = 'crontab'
    KIND_INTERVAL = 'interval'
    KIND_ONCE = 'once'

    CHOICES = (
        Choice(KIND_CRONTAB, _('Crontab'), color='blue', description=_('At times of the day, on days of the calendar')),
        Choice(KIND_INTERVAL, _('Interval'), color='cyan', description=_('Again and again, so many seconds apart')),
        Choice(KIND_ONCE, _('Once'), color='gray', description=_('At one time, and never again')),
    )


class ScheduleMissedChoices(ChoiceSet):
    """What becomes of times that were due while no beat was running."""
    MISSED_RUN_ONCE = 'run_once'
    MISSED_SKIP = 'skip'
    MISSED_RUN_ALL = 'run_all'

    CHOICES = (
        Choice(MISSED_RUN_ONCE, _('Run once'), color='blue', description=_('One run makes up for all of them')),
        Choice(MISSED_SKIP, _('Skip'), color='gray', description=_('The next run is the next one due')),
        Choice(MISSED_RUN_ALL, _('Run all'), color='orange', description=_('A run for each, up to a limit')),
    )


class ScheduleOverlapChoices(ChoiceSet):
    """What becomes of a run that is due while an earlier one of the same schedule has not ended."""
    OVERLAP_ALLOW = 'allow'
    OVERLAP_SKIP = 'skip'
    OVERLAP_QUEUE = 'queue'
    OVERLAP_REPLACE = 'replace'

    CHOICES = (
        Choice(OVERLAP_ALLOW, _('Allow'), color='green', description=_('They run side by side')),
        Choice(OVERLAP_SKIP, _('Skip'), color='gray', description=_('The new one is left out')),
        Choice(OVERLAP_QUEUE, _('Queue'), color='blue', description=_('The new one waits for the end of the earlier')),
        Choice(OVERLAP_REPLACE, _('Replace'), color='orange', description=_('The earlier one is cancelled')),
    )


class ScheduleOriginChoices(ChoiceSet):
    """Who says what a schedule runs, and when."""
    ORIGIN_USER = 'user'
    ORIGIN_SETTINGS = 'settings'
    ORIGIN_CODE = 'code'

    CHOICES = (
        Choice(ORIGIN_USER, _('User'), color='blue', description=_('Made in NetBox')),
        Choice(ORIGIN_SETTINGS, _('Settings'), color='purple', description=_("`beat_schedule` of Celery's settings")),
        Choice(ORIGIN_CODE, _('Code'), color='teal', description=_("The task's decorator or class")),
    )
