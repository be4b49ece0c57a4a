"""The vocabularies of the plugin: statuses of a run, reasons for its end, levels of its log."""
from django.utils.translation import gettext_lazy as _

from utilities.choices import Choice, ChoiceSet

__all__ = (
    'LogLevelChoices',
    'ResultReasonChoices',
    'ResultStatusChoices',
    'TrackChoices',
)


class ResultStatusChoices(ChoiceSet):
    """What a run is doing, or how it ended. `netbox_celery.engine.lifecycle` is the only writer."""
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
    REASON_SUPERSEDED = 'superseded'
    REASON_IGNORE_WINDOW = 'ignore_window'

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
        Choice(REASON_SUPERSEDED, _('Superseded'), description=_('A newer run with the same key took its place')),
        Choice(REASON_IGNORE_WINDOW, _('Ignore window'), description=_('It succeeded only a short time ago')),
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
