"""The runs: what was called, the current state, and how it finished.

These rows are the source of truth. `netbox_celery.engine.store.lifecycle` defines who may write which column and when.
Nothing in this module changes a status.
"""
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Unpack

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from netbox.models import NetBoxModel

from ..choices import ResultReasonChoices, ResultStatusChoices
from ..engine.store.conditions import HAS_OTHER_ROOT
from ..engine.store.headers import hide_tracing
from ..engine.store.payload import PayloadDecoder, PayloadEncoder, plain
from ..optiontypes import EnqueueOptions
from ..querysets import HistoryQuerySet
from .about import AboutObject
from .fields import AttemptsField, TimeField, with_plain_payloads
from .redaction import QUOTED_RUN, hide, shown

__all__ = (
    'CeleryResult',
)


#: Reasons that another run can cause, and how the error refers to that run.
BECAUSE_OF_OTHERS = (
    ResultReasonChoices.REASON_UPSTREAM_FAILED, ResultReasonChoices.REASON_CANCELLED,
    ResultReasonChoices.REASON_JOINED, ResultReasonChoices.REASON_SKIPPED,
)
NAMED_RUN = re.compile(r'\[([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\]')


class CeleryResult(NetBoxModel, AboutObject):
    """One run of a task, with all its attempts."""

    # What was called
    task_id = models.UUIDField(
        verbose_name=_('task ID'),
        unique=True,
        help_text=_('ID of the run in Celery')
    )
    celery_name = models.CharField(
        verbose_name=_('task'),
        max_length=255,
        help_text=_('Name under which the task is registered')
    )
    name = models.CharField(
        verbose_name=_('name'),
        max_length=255,
        help_text=_('Display name; defaults to the task name')
    )
    args = models.JSONField(
        verbose_name=_('arguments'),
        encoder=PayloadEncoder,
        decoder=PayloadDecoder,
        default=list,
        blank=True,
        null=True
    )
    kwargs = models.JSONField(
        verbose_name=_('keyword arguments'),
        encoder=PayloadEncoder,
        decoder=PayloadDecoder,
        default=dict,
        blank=True,
        null=True
    )
    options = models.JSONField(
        verbose_name=_('options'),
        encoder=PayloadEncoder,
        decoder=PayloadDecoder,
        default=dict,
        blank=True,
        help_text=_('Execution options as sent: queue, priority, ETA, time limits, ...')
    )
    queue = models.CharField(
        verbose_name=_('queue'),
        max_length=255,
        blank=True
    )
    user = models.ForeignKey(
        to=settings.AUTH_USER_MODEL,
        on_delete=models.SET_NULL,
        related_name='+',
        verbose_name=_('user'),
        blank=True,
        null=True,
        help_text=_('User the run acts as')
    )
    schedule = models.ForeignKey(
        to='netbox_celery.CelerySchedule',
        on_delete=models.SET_NULL,
        # With a name, deleting a schedule would make NetBox save each of its runs, one by one
        related_name='+',
        verbose_name=_('schedule'),
        blank=True,
        null=True,
        db_index=False,
        help_text=_('Schedule that started the run')
    )
    branch = models.CharField(
        verbose_name=_('branch'),
        max_length=100,
        blank=True,
        default='',
        db_default='',
        editable=False,
        help_text=_('Schema ID of the branch that the run reads and changes (NetBox Branching); empty for main')
    )

    # Where it stands
    status = models.CharField(
        verbose_name=_('status'),
        max_length=20,
        choices=ResultStatusChoices,
        default=ResultStatusChoices.STATUS_PENDING
    )
    reason = models.CharField(
        verbose_name=_('reason'),
        max_length=30,
        choices=ResultReasonChoices,
        blank=True
    )
    value = models.BigIntegerField(
        verbose_name=_('progress'),
        blank=True,
        null=True
    )
    value_max = models.BigIntegerField(
        verbose_name=_('progress maximum'),
        blank=True,
        null=True
    )
    step = models.CharField(
        verbose_name=_('step'),
        max_length=255,
        blank=True,
        help_text=_('What the task is currently doing')
    )
    data = models.JSONField(
        verbose_name=_('data'),
        encoder=PayloadEncoder,
        decoder=PayloadDecoder,
        blank=True,
        null=True,
        help_text=_("The task's own data about this run")
    )
    worker = models.CharField(
        verbose_name=_('worker'),
        max_length=255,
        blank=True,
        help_text=_('Node name of the current or last worker')
    )
    attempt = models.PositiveIntegerField(
        verbose_name=_('attempt'),
        default=0,
        help_text=_('Current or last attempt (0 = not started)')
    )
    attempts = AttemptsField(
        verbose_name=_('attempts'),
        default=list,
        blank=True,
        help_text=_('Number, start, end, worker and error of each attempt')
    )

    # When
    scheduled = TimeField(
        verbose_name=_('scheduled'),
        blank=True,
        null=True,
        help_text=_('Earliest start of the run or its next retry')
    )
    expires = TimeField(
        verbose_name=_('expires'),
        blank=True,
        null=True
    )
    sent = TimeField(
        verbose_name=_('sent'),
        blank=True,
        null=True,
        help_text=_('When the broker accepted the message')
    )
    started = TimeField(
        verbose_name=_('started'),
        blank=True,
        null=True
    )
    completed = TimeField(
        verbose_name=_('completed'),
        blank=True,
        null=True
    )
    cancelled = TimeField(
        verbose_name=_('cancelled'),
        blank=True,
        null=True,
        help_text=_('When cancellation was requested')
    )

    # How it ended
    result = models.JSONField(
        verbose_name=_('result'),
        encoder=PayloadEncoder,
        decoder=PayloadDecoder,
        blank=True,
        null=True
    )
    error = models.TextField(
        verbose_name=_('error'),
        blank=True
    )
    traceback = models.TextField(
        verbose_name=_('traceback'),
        blank=True
    )

    # What it belongs to. Plain UUIDs instead of foreign keys: a parent may never have been published.
    request_id = models.UUIDField(
        verbose_name=_('request ID'),
        blank=True,
        null=True,
        help_text=_('Request ID of the changes made by the run')
    )
    parent_id = models.UUIDField(
        verbose_name=_('parent ID'),
        blank=True,
        null=True
    )
    root_id = models.UUIDField(
        verbose_name=_('root ID'),
        blank=True,
        null=True
    )
    group_id = models.UUIDField(
        verbose_name=_('group ID'),
        blank=True,
        null=True
    )

    # Internal to the engine; not shown
    message = models.TextField(
        editable=False,
        null=True,
        help_text='Arguments to send (again), if `args` and `kwargs` hold them redacted or truncated.'
    )
    exact_call = models.TextField(
        editable=False,
        null=True,
        help_text='Arguments, keyword arguments and options as JSON, if numbers or the order of keys differ in their '
                  'own columns.'
    )
    exact_result = models.TextField(
        editable=False,
        null=True,
        help_text='The result as JSON, if numbers or the order of keys differ in its own column.'
    )
    holder = models.UUIDField(
        editable=False,
        null=True,
        help_text='Key of the worker that claimed the run (`CeleryWorker.key`).'
    )
    claims = models.PositiveIntegerField(
        editable=False,
        default=0,
        help_text='Fencing token: number of claims. Only the last claim may finish the run.'
    )
    nesting = models.PositiveIntegerField(
        editable=False,
        default=0,
        help_text='How often the task has replaced itself. A higher number is a later message.'
    )

    in_backend = models.BooleanField(
        editable=False,
        default=False,
        help_text="Celery's result backend holds more of the result than the row does."
    )

    # What it may not run concurrently with (see `netbox_celery.engine.calls.policies`)
    concurrency_key = models.CharField(
        verbose_name=_('concurrency key'),
        max_length=255,
        blank=True,
        null=True,
        help_text=_('Runs sharing this key share a concurrency limit')
    )
    concurrency_slot = models.PositiveIntegerField(
        editable=False,
        null=True,
        help_text='Slot of the run under its concurrency key. 0: the run is in the waiting line.'
    )
    concurrency_limit = models.PositiveIntegerField(
        editable=False,
        null=True,
        help_text='Number of slots under the concurrency key.'
    )
    stale_after = TimeField(
        verbose_name=_('stale after'),
        blank=True,
        null=True,
        help_text=_('When the run gives up its concurrency slot (it keeps running)')
    )

    #: Set on what `enqueue` returns: the call has joined this run, which was already active.
    joined: bool = False

    objects = HistoryQuerySet.as_manager()

    class Meta:
        # Newest first. The primary key orders as `created` does and needs no index of its own.
        ordering = ('-pk',)
        indexes = (
            models.Index(fields=('celery_name', '-id')),
            models.Index(
                fields=('object_type', 'object_id'),
                condition=Q(object_id__isnull=False),
                name='netbox_celery_result_object'
            ),
            models.Index(
                fields=('schedule', '-id'),
                condition=Q(schedule__isnull=False),
                name='netbox_celery_result_schedule'
            ),
            models.Index(
                fields=('root_id',),
                condition=HAS_OTHER_ROOT,
                name='netbox_celery_result_root'
            ),
            # For the sweeps: few rows, however long the history. Status and holder are in no index, so that PostgreSQL
            # can write claims and progress into the same page (HOT, with the fill factor of migration 0001) without
            # updating an index.
            models.Index(
                fields=('id',),
                condition=Q(completed__isnull=True),
                name='netbox_celery_result_open'
            ),
            # Parts of chords in the order in which they finished: the sweep checks that their callback exists
            models.Index(
                fields=('completed',),
                condition=Q(options__has_key='chord', completed__isnull=False),
                name='netbox_celery_result_part'
            ),
            # The waiting lines
            models.Index(
                fields=('concurrency_key', 'id'),
                condition=Q(completed__isnull=True, concurrency_slot=0),
                name='netbox_celery_result_line'
            ),
        )
        constraints = (
            # The guarantee of `unique` and `concurrency_key`: the statement that finishes a run also frees its slot.
            models.UniqueConstraint(
                fields=('concurrency_key', 'concurrency_slot'),
                condition=Q(completed__isnull=True, concurrency_slot__gt=0),
                name='netbox_celery_result_slot'
            ),
        )
        permissions = (
            ('cancel', 'Cancel a run'),
            ('rerun', 'Run again with the same arguments'),
        )
        verbose_name = _('run')
        verbose_name_plural = _('runs')

    def __str__(self):
        return self.name or self.celery_name or str(self.task_id)

    def get_status_color(self):
        return ResultStatusChoices.colors.get(self.status)

    def serialize_object(self, exclude=None):
        """Keep out of the change log: internal columns, secrets, and text quoted from other runs."""
        own = (
            'message', 'exact_call', 'exact_result', 'holder', 'claims', 'nesting', 'in_backend', 'concurrency_slot',
            'concurrency_limit',
        )
        exclude = [*(exclude or ()), *own]
        data = hide(super(CeleryResult, with_plain_payloads(self, exclude)).serialize_object(exclude=exclude))
        if 'options' in data:
            data['options'] = hide_tracing(data['options'])
        unquoted = {'error': self.error_without_quote, 'attempts': self.attempts_without_quote}
        return data | {name: value for name, value in unquoted.items() if name in data}

    @property
    def is_finished(self) -> bool:
        """Whether the run has finished: its status no longer changes."""
        return self.status in ResultStatusChoices.FINISHED

    @property
    def is_cancelling(self) -> bool:
        """Whether cancellation was requested and the run has not finished yet."""
        return self.cancelled is not None and not self.is_finished

    @property
    def culprit_id(self) -> str | None:
        """ID of the other run that prevented or ended this one, as the error names it, or `None`."""
        named = NAMED_RUN.search(self.error) if self.reason in BECAUSE_OF_OTHERS else None
        return named and named.group(1)

    @property
    def quoted_id(self) -> str | None:
        """ID of another run whose name and error are quoted in this run's error, or `None`.

        Users who may not view that run must not read the quote either: they get `error_without_quote`.
        """
        if self.reason != ResultReasonChoices.REASON_UPSTREAM_FAILED:
            return None
        quoted = QUOTED_RUN.search(self.error)
        return quoted and (quoted.group(1) or quoted.group(2))

    @property
    def error_without_quote(self) -> str:
        """The error without what it quotes of another run; only the ID of that run remains."""
        quoted = self.quoted_id
        return f'Not run, because [{quoted}] did not succeed' if quoted else self.error

    @property
    def attempts_without_quote(self) -> list[dict[str, Any]]:
        """The attempts with quotes removed from their errors (see `error_without_quote`)."""
        error = self.error_without_quote
        if error == self.error:
            return self.attempts
        return [
            attempt | {'error': error} if QUOTED_RUN.search(str(attempt.get('error'))) else attempt
            for attempt in self.attempts
        ]

    @property
    def display_args(self):
        """Arguments for display: the caller's `argsrepr` if given, otherwise `args` as plain JSON."""
        return self._display('args')

    @property
    def display_kwargs(self):
        """Keyword arguments for display (see `display_args`)."""
        return self._display('kwargs')

    @property
    def display_options(self):
        """Options for display. The `argsrepr` of later steps and callbacks replaces their arguments."""
        return shown({'options': hide_tracing(self.options or {})})['options']

    def _display(self, field):
        options = self.options if isinstance(self.options, dict) else {}
        redacted = options.get(f'{field}repr')
        return shown(getattr(self, field)) if redacted is None else plain(redacted)

    @property
    def is_rerunnable(self) -> bool:
        """Whether the row still holds the arguments, so that the task can be run again with them."""
        return isinstance(self.args, list) and isinstance(self.kwargs, dict)

    @property
    def percentage(self) -> float | None:
        """Progress in percent, between 0 and 100, or `None` if unknown."""
        if self.value is None or not self.value_max:
            return None
        return max(0.0, min(100.0, 100 * self.value / self.value_max))

    @property
    def duration(self) -> timedelta | None:
        """Time from the first start to the end (or to now), or `None` before the start."""
        if self.started is None:
            return None
        return max((self.completed or timezone.now()) - self.started, timedelta())

    @classmethod
    def enqueue(cls, task_or_name: Any, *, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None,
                user: Any = None, instance: models.Model | None = None, schedule_at: datetime | None = None,
                queue: str | None = None, **options: Unpack[EnqueueOptions]) -> 'CeleryResult':
        """Run a task in the background and return the row of the run.

        Inside a transaction, the row is part of the transaction and the message is sent on commit.

        Args:
            task_or_name: A Celery task or its name.
            args: Positional arguments of the task, without `task_id`.
            kwargs: Keyword arguments of the task.
            user: The user the run acts as (a user or a primary key).
            instance: The NetBox object that the run concerns.
            schedule_at: Earliest start, an aware `datetime`.
            queue: Name of the queue; defaults to Celery's `task_routes`.
            **options: Any option of Celery's `apply_async` and any `netbox_*` option.

        Returns:
            The new `CeleryResult`, or that of the run that the call has joined, with `joined` set to `True`.

        Raises:
            TypeError: The arguments do not match the task's signature.
            ValueError: `instance` has not been saved.
            celery.exceptions.CeleryError: The policies of the call reject it (`TaskConflict`) or contradict each other.
                Or there is no row to return: `task_always_eager` is set or `task_id` is not a UUID (in both cases
                nothing was done), or the row could not be created.
            kombu.exceptions.EncodeError: An argument cannot be encoded as JSON (a model instance, for example).
            kombu.exceptions.OperationalError: The broker rejected the message (outside a transaction).
        """
        from ..engine.sending.api import enqueue
        return enqueue(
            task_or_name, args=args, kwargs=kwargs, user=user, instance=instance, schedule_at=schedule_at,
            queue=queue, **options
        )

    @classmethod
    def enqueue_many(cls, task_or_name: Any, calls: Iterable[Any], *, user: Any = None,
                     instance: models.Model | None = None, schedule_at: datetime | None = None,
                     queue: str | None = None, **options: Unpack[EnqueueOptions]) -> HistoryQuerySet:
        """Run a task many times, with one bulk insert and one producer.

        Args:
            task_or_name: A Celery task or its name.
            calls: An iterable with one item per run: a tuple or list of positional arguments, a dict of keyword
                arguments, or a pair `(args, kwargs)` of a tuple or list and a dict.
            user, instance, schedule_at, queue, **options: As for `enqueue`; they apply to all runs.

        Returns:
            A lazy queryset of the new rows, in the order of `calls`.

        Raises:
            Exception: As for `enqueue`.
        """
        from ..engine.sending.api import enqueue_many
        return enqueue_many(
            task_or_name, calls, user=user, instance=instance, schedule_at=schedule_at, queue=queue, **options
        )

    @classmethod
    def enqueue_job(cls, celery_name: str, user: Any, celery_kwargs: Mapping[str, Any] | None = None,
                    task_id: Any = None, args: Sequence[Any] = (),
                    kwargs: Mapping[str, Any] | None = None) -> 'CeleryResult':
        """Run a task by name; the older signature of `enqueue`.

        Args:
            celery_name: Name of the task.
            user: The user the run acts as.
            celery_kwargs: Options of Celery's `apply_async`.
            task_id: ID of the run; defaults to a new one.
            args: Positional arguments of the task.
            kwargs: Keyword arguments of the task.

        Returns:
            The `CeleryResult`, as `enqueue` does.

        Raises:
            Exception: As for `enqueue`.
        """
        options = dict(celery_kwargs or {})
        if task_id is not None:
            options['task_id'] = str(task_id)
        return cls.enqueue(celery_name, args=args, kwargs=kwargs, user=user, **options)

    def cancel(self, user: Any = None) -> bool:
        """Cancel the run: a waiting run is revoked immediately, an active one is terminated or asked to stop.

        Args:
            user: Who requests the cancellation; the run's error names them.

        Returns:
            Whether this call requested it: the run had not finished, and cancellation had not been requested before.
        """
        from ..engine.sending.control import cancel
        return cancel(self, user=user)
    cancel.alters_data = True  # type: ignore[attr-defined]

    def rerun(self, user: Any = None) -> 'CeleryResult':
        """Run the task again with the same arguments and options, but without its times (ETA, expiry).

        Args:
            user: The user the new run acts as; defaults to the user of this run.

        Returns:
            The new `CeleryResult`, or that of the run that the call has joined (see `enqueue`).

        Raises:
            NotRerunnable: The row does not hold the arguments: the caller redacted them, or they are too large.
            Exception: As for `enqueue`.
        """
        from ..engine.sending.control import rerun
        return rerun(self, user=user)
    rerun.alters_data = True  # type: ignore[attr-defined]
