"""A run: what was called, where it stands, how it ended.

The rows are the truth about runs: who may write which column when is told in `netbox_celery.engine.store.lifecycle`.
Nothing here changes a status.
"""
import re
from datetime import timedelta

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
from ..engine.store.redaction import QUOTED_RUN, hide, shown
from ..querysets import HistoryQuerySet
from .about import AboutObject
from .fields import AttemptsField, TimeField, with_plain_payloads

__all__ = (
    'CeleryResult',
)


#: Reasons that may lie in another run, and how the error names that.
BECAUSE_OF_OTHERS = (
    ResultReasonChoices.REASON_UPSTREAM_FAILED, ResultReasonChoices.REASON_CANCELLED,
    ResultReasonChoices.REASON_JOINED, ResultReasonChoices.REASON_SKIPPED,
)
NAMED_RUN = re.compile(r'\[([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\]')


class CeleryResult(NetBoxModel, AboutObject):
    """One run of a task, whatever its number of attempts."""

    # What was called
    task_id = models.UUIDField(
        verbose_name=_('task ID'),
        unique=True,
        help_text=_("Celery's ID of this run")
    )
    celery_name = models.CharField(
        verbose_name=_('task'),
        max_length=255,
        help_text=_('Name under which the task is registered')
    )
    name = models.CharField(
        verbose_name=_('name'),
        max_length=255,
        help_text=_("What is shown; by default the task's name")
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
        help_text=_('Under whose name the task changes NetBox objects')
    )
    schedule = models.ForeignKey(
        to='netbox_celery.CelerySchedule',
        on_delete=models.SET_NULL,
        # With a name, NetBox would save each run of a schedule that is deleted, one by one
        related_name='+',
        verbose_name=_('schedule'),
        blank=True,
        null=True,
        db_index=False,
        help_text=_('The schedule that started it')
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
        help_text=_('What the task is doing at the moment')
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
        help_text=_('Node name of the worker that runs, or last ran, the task')
    )
    attempt = models.PositiveIntegerField(
        verbose_name=_('attempt'),
        default=0,
        help_text=_('Number of the current or last attempt; 0 before the first')
    )
    attempts = AttemptsField(
        verbose_name=_('attempts'),
        default=list,
        blank=True,
        help_text=_('History: number, started, ended, worker and error of each attempt')
    )

    # When
    scheduled = TimeField(
        verbose_name=_('scheduled'),
        blank=True,
        null=True,
        help_text=_('Earliest time of the start, or of the next attempt')
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
        help_text=_('When somebody asked for it to be cancelled')
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

    # What it belongs to. Plain UUIDs, never foreign keys: a parent may never have been published.
    request_id = models.UUIDField(
        verbose_name=_('request ID'),
        blank=True,
        null=True,
        help_text=_("Joins the changes that the run made in NetBox's change log")
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

    # The engine's own, shown nowhere
    message = models.TextField(
        editable=False,
        null=True,
        help_text='Arguments to send (again) where `args` and `kwargs` do not hold them: they are redacted or cut.'
    )
    exact_call = models.TextField(
        editable=False,
        null=True,
        help_text='Arguments, keyword arguments and options as JSON, where their own columns hold other numbers, or '
                  'keys in another order.'
    )
    exact_result = models.TextField(
        editable=False,
        null=True,
        help_text='The result as JSON, where its own column holds other numbers, or keys in another order.'
    )
    holder = models.UUIDField(
        editable=False,
        null=True,
        help_text='Key of the worker process group that claimed the run (`CeleryWorker.key`).'
    )
    claims = models.PositiveIntegerField(
        editable=False,
        default=0,
        help_text='Fencing token: counts the claims; only the last claim may end the run.'
    )
    nesting = models.PositiveIntegerField(
        editable=False,
        default=0,
        help_text='How often the task replaced itself; a higher number is a later message.'
    )

    in_backend = models.BooleanField(
        editable=False,
        default=False,
        help_text="Celery's result backend holds more of the result than the row."
    )

    # With what it may not run at the same time (see `netbox_celery.engine.calls.policies`)
    concurrency_key = models.CharField(
        verbose_name=_('concurrency key'),
        max_length=255,
        blank=True,
        null=True,
        help_text=_('Runs with the same key share a limit of how many there may be at a time')
    )
    concurrency_slot = models.PositiveIntegerField(
        editable=False,
        null=True,
        help_text='Which of the places under its key the run has; 0: it waits in line for one.'
    )
    concurrency_limit = models.PositiveIntegerField(
        editable=False,
        null=True,
        help_text='How many runs with its key there may be at a time.'
    )
    stale_after = TimeField(
        verbose_name=_('stale after'),
        blank=True,
        null=True,
        help_text=_('When the run loses its place under its key to a new one; it is not ended for that')
    )

    #: Of what `enqueue` returns: the call has become this run, which was under way already.
    joined = False

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
            # What the sweeps look at: few rows, whatever the length of the history. Status and holder are in no index,
            # so that PostgreSQL can write a claim and each progress into the same page (HOT, with migration 0001's
            # fill factor) without touching an index.
            models.Index(
                fields=('id',),
                condition=Q(completed__isnull=True),
                name='netbox_celery_result_open'
            ),
            # Parts of chords in the order of their ends: somebody looks whether what comes after them is there
            models.Index(
                fields=('completed',),
                condition=Q(options__has_key='chord', completed__isnull=False),
                name='netbox_celery_result_part'
            ),
            # Who waits in line for a place
            models.Index(
                fields=('concurrency_key', 'id'),
                condition=Q(completed__isnull=True, concurrency_slot=0),
                name='netbox_celery_result_line'
            ),
        )
        constraints = (
            # The guarantee of `unique` and `concurrency_key`: an end of the run frees its place in the same statement.
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
        verbose_name = _('result')
        verbose_name_plural = _('results')

    def __str__(self):
        return self.name or self.celery_name or str(self.task_id)

    def get_status_color(self):
        return ResultStatusChoices.colors.get(self.status)

    def serialize_object(self, exclude=None):
        """Leave out of the change log what only the engine uses, what is secret, and what other runs have said."""
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
    def is_finished(self):
        """Whether the run has ended; nothing changes its status any more."""
        return self.status in ResultStatusChoices.FINISHED

    @property
    def is_cancelling(self):
        """Whether somebody asked to cancel the run and it has not ended yet."""
        return self.cancelled is not None and not self.is_finished

    @property
    def culprit_id(self):
        """ID of another run because of which this one was not run or was ended, as the error names it, or `None`."""
        named = NAMED_RUN.search(self.error) if self.reason in BECAUSE_OF_OTHERS else None
        return named and named.group(1)

    @property
    def quoted_id(self):
        """ID of another run whose name and error this one's error repeats, or `None`.

        Who may not view that run may not read them here either: they read `error_without_quote`.
        """
        if self.reason != ResultReasonChoices.REASON_UPSTREAM_FAILED:
            return None
        quoted = QUOTED_RUN.search(self.error)
        return quoted and (quoted.group(1) or quoted.group(2))

    @property
    def error_without_quote(self):
        """The error, without what it says of another run but its ID."""
        quoted = self.quoted_id
        return f'Not run, because [{quoted}] did not succeed' if quoted else self.error

    @property
    def attempts_without_quote(self):
        """The attempts, likewise."""
        error = self.error_without_quote
        if error == self.error:
            return self.attempts
        return [
            attempt | {'error': error} if QUOTED_RUN.search(str(attempt.get('error'))) else attempt
            for attempt in self.attempts
        ]

    @property
    def display_args(self):
        """Arguments as a person reads them: the caller's `argsrepr` if one was given, else `args` as plain JSON."""
        return self._display('args')

    @property
    def display_kwargs(self):
        """Keyword arguments as a person reads them (see `display_args`)."""
        return self._display('kwargs')

    @property
    def display_options(self):
        """Options as a person reads them: later steps and callbacks show their arguments as their `argsrepr` says."""
        return shown({'options': hide_tracing(self.options or {})})['options']

    def _display(self, field):
        options = self.options if isinstance(self.options, dict) else {}
        redacted = options.get(f'{field}repr')
        return shown(getattr(self, field)) if redacted is None else plain(redacted)

    @property
    def is_rerunnable(self):
        """Whether the row still holds the arguments, so that the run can be repeated."""
        return isinstance(self.args, list) and isinstance(self.kwargs, dict)

    @property
    def percentage(self):
        """Progress in percent, between 0 and 100, or `None` while it is not known."""
        if self.value is None or not self.value_max:
            return None
        return max(0.0, min(100.0, 100 * self.value / self.value_max))

    @property
    def duration(self):
        """Time from the first start to the end (or to now), a `timedelta`, or `None` before the start."""
        if self.started is None:
            return None
        return max((self.completed or timezone.now()) - self.started, timedelta())

    @classmethod
    def enqueue(cls, task_or_name, *, args=(), kwargs=None, user=None, instance=None, schedule_at=None, queue=None,
                **options):
        """Run a task in the background and return its row.

        Inside a transaction the row is part of it and the message goes out on commit.

        Args:
            task_or_name: A Celery task, or the name of one.
            args: Positional arguments of the task, without `task_id`.
            kwargs: Keyword arguments of the task.
            user: Under whose name the task changes NetBox objects (a user, or a primary key).
            instance: The NetBox object that the run concerns.
            schedule_at: Earliest time of the start, an aware `datetime`.
            queue: Name of the queue; by default what Celery's `task_routes` says.
            **options: Any option of Celery's `apply_async` and any `netbox_*` option.

        Returns:
            The new `CeleryResult`, or that of the run which the call has joined: its `joined` is `True`.

        Raises:
            TypeError: The arguments do not fit the task's signature.
            ValueError: `instance` has not been saved.
            celery.exceptions.CeleryError: The task's policies keep it from being called (`TaskConflict`), or contradict
                each other. Or there is no row to return: `task_always_eager` is set, or `task_id` is no UUID, nothing
                having been done; or the row could not be made.
            kombu.exceptions.EncodeError: An argument cannot be written as JSON (a model instance, for example).
            kombu.exceptions.OperationalError: The broker refused the message (outside a transaction).
        """
        from ..engine.sending.api import enqueue
        return enqueue(
            task_or_name, args=args, kwargs=kwargs, user=user, instance=instance, schedule_at=schedule_at,
            queue=queue, **options
        )

    @classmethod
    def enqueue_many(cls, task_or_name, calls, *, user=None, instance=None, schedule_at=None, queue=None, **options):
        """Run a task many times: one bulk insert, one producer.

        Args:
            task_or_name: A Celery task, or the name of one.
            calls: An iterable with one item a run: a tuple or list of positional arguments, a dict of keyword
                arguments, or a pair `(args, kwargs)` of a tuple or list and a dict.
            user, instance, schedule_at, queue, **options: As for `enqueue`; they hold for all runs.

        Returns:
            A queryset of the new rows, in the order of `calls`; they are loaded when it is used.

        Raises:
            Exception: As for `enqueue`.
        """
        from ..engine.sending.api import enqueue_many
        return enqueue_many(
            task_or_name, calls, user=user, instance=instance, schedule_at=schedule_at, queue=queue, **options
        )

    @classmethod
    def enqueue_job(cls, celery_name, user, celery_kwargs=None, task_id=None, args=(), kwargs=None):
        """Run a task by name; the older signature of `enqueue`.

        Args:
            celery_name: Name of the task.
            user: Under whose name the task changes NetBox objects.
            celery_kwargs: Options of Celery's `apply_async`.
            task_id: ID of the run; by default a new one.
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

    def cancel(self, user=None):
        """Cancel the run: at once if it waits; one that has begun is terminated, or asked to stop.

        Args:
            user: Who asks for it; the run's error says so.

        Returns:
            Whether it was still to be cancelled: it had not ended, and nobody had asked before.
        """
        from ..engine.sending.control import cancel
        return cancel(self, user=user)
    cancel.alters_data = True

    def rerun(self, user=None):
        """Run the task again with the same arguments and options, without its times.

        Args:
            user: Under whose name; by default that of this run.

        Returns:
            The new `CeleryResult`, or that of the run which the call has joined (see `enqueue`).

        Raises:
            NotRerunnable: The row does not hold the arguments: their caller has redacted them, or they are too large.
            Exception: As for `enqueue`.
        """
        from ..engine.sending.control import rerun
        return rerun(self, user=user)
    rerun.alters_data = True
