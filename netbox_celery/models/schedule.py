"""The schedules: which task runs, when, and as which user.

Beat (`netbox_celery.scheduler`) starts runs by `next_run`. Only two write it: beat, together with the run that was due,
and `save()`, when a field that determines the timing changes. So a form that was open meanwhile never undoes what beat
has done. The same holds for `stopped`: beat sets it when it disables a schedule, and `save()` clears it when a user
enables the schedule or becomes its owner.
"""
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models, transaction
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from netbox.models import NetBoxModel

from ..choices import (
    ScheduleKindChoices,
    ScheduleMissedChoices,
    ScheduleOriginChoices,
    ScheduleOverlapChoices,
)
from ..engine.app import get_app
from ..engine.catalogue.checking import check_arguments
from ..engine.exceptions import InvalidArguments, QueueRefused
from ..engine.schedules import due
from ..engine.store import branches
from ..engine.store.payload import PayloadDecoder, PayloadEncoder, dumps_any, other_number, plain, to_jsonb
from .about import AboutObject
from .fields import IntervalField, TimeField, with_plain_payloads
from .redaction import hide, shown

if TYPE_CHECKING:
    from .result import CeleryResult

__all__ = (
    'CelerySchedule',
)


def default_timezone() -> str:
    return settings.TIME_ZONE


class CelerySchedule(NetBoxModel, AboutObject):
    """When a task is run automatically: by a crontab, at an interval, or once."""
    name = models.CharField(
        verbose_name=_('name'),
        max_length=255,
        unique=True
    )
    description = models.CharField(
        verbose_name=_('description'),
        max_length=200,
        blank=True
    )
    enabled = models.BooleanField(
        verbose_name=_('enabled'),
        default=True,
        help_text=_('Runs missed while disabled are not caught up')
    )
    origin = models.CharField(
        verbose_name=_('origin'),
        max_length=20,
        choices=ScheduleOriginChoices,
        default=ScheduleOriginChoices.ORIGIN_USER,
        editable=False,
        help_text=_('Where the schedule is defined')
    )
    present = models.BooleanField(
        verbose_name=_('defined'),
        default=True,
        editable=False,
        help_text=_('Still defined in settings or code; otherwise it does not run')
    )
    owner = models.ForeignKey(
        to=settings.AUTH_USER_MODEL,
        on_delete=models.SET_NULL,
        related_name='+',
        verbose_name=_('owner'),
        blank=True,
        null=True,
        help_text=_('User the runs act as; must be allowed to run the task')
    )

    # When
    kind = models.CharField(
        verbose_name=_('type'),
        max_length=20,
        choices=ScheduleKindChoices,
        default=ScheduleKindChoices.KIND_CRONTAB
    )
    crontab = models.CharField(
        verbose_name=_('crontab'),
        max_length=255,
        blank=True,
        help_text=_('Minute, hour, day of the month, month, day of the week, such as <code>30 2 * * mon-fri</code>')
    )
    timezone = models.CharField(
        verbose_name=_('time zone'),
        max_length=63,
        default=default_timezone,
        help_text=_('Time zone in which the crontab is evaluated')
    )
    interval = IntervalField(
        verbose_name=_('interval'),
        validators=(MinValueValidator(1),),
        blank=True,
        null=True,
        help_text=_('Seconds between runs')
    )
    at = TimeField(
        verbose_name=_('at'),
        blank=True,
        null=True,
        help_text=_('Date and time of the run')
    )
    start = TimeField(
        verbose_name=_('start'),
        blank=True,
        null=True,
        help_text=_('First possible run; intervals are counted from this time')
    )
    end = TimeField(
        verbose_name=_('end'),
        blank=True,
        null=True,
        help_text=_('No runs after this time')
    )

    # What
    task = models.ForeignKey(
        to='netbox_celery.CeleryTask',
        on_delete=models.PROTECT,
        related_name='schedules',
        verbose_name=_('task')
    )
    args = models.JSONField(
        verbose_name=_('arguments'),
        encoder=PayloadEncoder,
        decoder=PayloadDecoder,
        default=list,
        blank=True
    )
    kwargs = models.JSONField(
        verbose_name=_('keyword arguments'),
        encoder=PayloadEncoder,
        decoder=PayloadDecoder,
        default=dict,
        blank=True
    )
    queue = models.CharField(
        verbose_name=_('queue'),
        max_length=255,
        blank=True
    )
    priority = models.PositiveSmallIntegerField(
        verbose_name=_('priority'),
        validators=(MaxValueValidator(255),),
        blank=True,
        null=True,
        help_text=_('0 is highest on Redis, lowest on RabbitMQ')
    )
    expires = models.PositiveIntegerField(
        verbose_name=_('expires'),
        validators=(MinValueValidator(1),),
        blank=True,
        null=True,
        help_text=_('Discard the run if not started within this many seconds of its due time')
    )
    options = models.JSONField(
        verbose_name=_('additional options'),
        encoder=PayloadEncoder,
        decoder=PayloadDecoder,
        default=dict,
        blank=True,
        editable=False,
        help_text=_('Options of `apply_async` from the Celery settings')
    )
    branch = models.CharField(
        verbose_name=_('branch'),
        max_length=100,
        blank=True,
        default='',
        db_default='',
        editable=False,
        help_text=_('Schema ID of the branch that the runs read and change (NetBox Branching); empty for main')
    )

    # Policies
    missed = models.CharField(
        verbose_name=_('missed runs'),
        max_length=20,
        choices=ScheduleMissedChoices,
        default=ScheduleMissedChoices.MISSED_RUN_ONCE,
        help_text=_('How to handle runs missed while beat was down')
    )
    missed_max = models.PositiveSmallIntegerField(
        verbose_name=_('catch-up limit'),
        validators=(MinValueValidator(1), MaxValueValidator(1000)),
        default=10,
        help_text=_('Maximum runs to catch up (latest first); applies to "Run all"')
    )
    overlap = models.CharField(
        verbose_name=_('overlap'),
        max_length=20,
        choices=ScheduleOverlapChoices,
        default=ScheduleOverlapChoices.OVERLAP_ALLOW,
        help_text=_('What to do if the previous run is still in progress')
    )

    # Where it stands
    last_run = TimeField(
        verbose_name=_('last run'),
        blank=True,
        null=True,
        editable=False,
        help_text=_('When beat last started a run')
    )
    next_run = TimeField(
        verbose_name=_('next run'),
        blank=True,
        null=True,
        editable=False,
        help_text=_('When the schedule is due next')
    )
    stopped = TimeField(
        verbose_name=_('stopped'),
        blank=True,
        null=True,
        editable=False,
        help_text=_('When beat disabled the schedule because its owner could not run the task')
    )

    #: The fields that determine when it is due.
    TIMING = ('kind', 'crontab', 'timezone', 'interval', 'at', 'start', 'end', 'enabled', 'present')
    #: The fields that are checked against the task's signature.
    CALL = ('task_id', 'args', 'kwargs')
    #: The fields that the settings or the code define, if the schedule comes from there.
    SOURCED = (
        'name', 'origin', 'kind', 'crontab', 'timezone', 'interval', 'at', 'start', 'end', 'task', 'args', 'kwargs',
        'queue', 'priority', 'expires', 'options',
    )

    #: No Help button: NetBox's default is the address of a page that exists for NetBox's own models only.
    docs_url = None

    clone_fields = (
        'description', 'enabled', 'kind', 'crontab', 'timezone', 'interval', 'at', 'start', 'end', 'task', 'queue',
        'priority', 'expires', 'object', 'missed', 'missed_max', 'overlap',
    )

    class Meta:
        ordering = ('name',)
        indexes = (
            # Queried by beat every few seconds
            models.Index(
                fields=('next_run',),
                condition=Q(enabled=True),
                name='netbox_celery_schedule_due'
            ),
        )
        verbose_name = _('schedule')
        verbose_name_plural = _('schedules')

    def __str__(self):
        return self.name

    def get_kind_color(self):
        return ScheduleKindChoices.colors.get(self.kind)

    def get_missed_color(self):
        return ScheduleMissedChoices.colors.get(self.missed)

    def get_overlap_color(self):
        return ScheduleOverlapChoices.colors.get(self.overlap)

    def get_origin_color(self):
        return ScheduleOriginChoices.colors.get(self.origin)

    def serialize_object(self, exclude=None):
        """Keep out of the change log what beat writes, and secrets."""
        exclude = [*(exclude or ()), 'last_run', 'next_run', 'stopped']
        return hide(super(CelerySchedule, with_plain_payloads(self, exclude)).serialize_object(exclude=exclude))

    def clone(self):
        arguments = {
            name: dumps_any(value)
            for name in ('args', 'kwargs') if (value := getattr(self, name)) and not self.hides(name)
        }
        return super().clone() | arguments

    def hides(self, field: str) -> bool:
        """Whether the options from the Celery settings hide `args` or `kwargs` (`argsrepr`, `kwargsrepr`)."""
        return isinstance(self.options, dict) and self.options.get(f'{field}repr') is not None

    @property
    def display_args(self):
        """Arguments for display: the `argsrepr` of the options if there is one, otherwise plain JSON."""
        return plain(self.options['argsrepr']) if self.hides('args') else shown(self.args)

    @property
    def display_kwargs(self):
        """Keyword arguments for display (see `display_args`)."""
        return plain(self.options['kwargsrepr']) if self.hides('kwargs') else shown(self.kwargs)

    @property
    def display_options(self):
        """Options for display (see `CeleryResult.display_options`)."""
        return shown({'options': self.options or {}})['options']

    @property
    def is_read_only(self) -> bool:
        """Whether the schedule is defined in settings or code, so that the fields in `SOURCED` are read-only."""
        return self.origin != ScheduleOriginChoices.ORIGIN_USER

    @property
    def in_words(self) -> str:
        """When it is due, in words."""
        return due.describe(self)

    def due_times(self, after: datetime | None = None) -> Iterator[datetime]:
        """Yield the times at which the schedule is due, from now on or after a time, as aware `datetime`s.

        This also works for an unsaved schedule without a `next_run`, such as that of a form being filled in.
        """
        if after is None:
            if not self._state.adding and self.next_run is not None:
                yield self.next_run
            after = self.next_run or timezone.now()
        yield from due.due_times(self, after)

    # Validation

    def clean_fields(self, exclude=None):
        # Other checks must not descend into a value that cannot be encoded as JSON; `clean()` reports the error
        super().clean_fields({*(exclude or ()), *self._unwritable()})

    def _unwritable(self):
        """Return the errors, by field, of values that cannot be encoded as JSON or are nested too deeply."""
        errors = {}
        for name in ('args', 'kwargs', 'options'):
            try:
                to_jsonb(getattr(self, name))
            except (TypeError, ValueError) as exc:
                errors[name] = _('Cannot be sent: {error}').format(error=exc)
        return errors

    def clean(self):
        stored = self._stored()
        # The code may have changed, a time zone may have been removed, or an earlier version may have stored a value
        # that cannot be sent. Fields that were not changed must not prevent users from disabling the schedule.
        is_resumed = self.enabled and not (stored and stored['enabled'])
        is_call_checked = is_resumed or self._is_call_changed(stored)
        if is_call_checked and (errors := self._unwritable()):
            raise ValidationError(errors)
        super().clean()
        self._check_source()
        errors = {}
        if is_resumed or self._is_changed(stored, set(self.TIMING) - {'enabled'}):
            errors |= self._check_timing()
        if is_call_checked:
            errors |= self._check_arguments()
        if self.queue and self._is_changed(stored, ('queue',)):
            errors |= self._check_queue()
        if errors:
            raise ValidationError(errors)
        if self.enabled and self._is_changed(stored, self.TIMING):
            self._check_future()

    def _check_source(self):
        """Reject changes that the next synchronization with the settings or the code would revert."""
        before = None if self._state.adding else type(self).objects.filter(pk=self.pk).first()
        if before is None or not before.is_read_only:
            return
        fields = map(self._meta.get_field, self.SOURCED)
        if changed := [f.name for f in fields if getattr(before, f.attname) != getattr(self, f.attname)]:
            raise ValidationError({
                name: _('This schedule is defined in {origin} and can only be changed there.').format(
                    origin=before.get_origin_display()
                ) for name in changed
            })

    def _check_timing(self):
        """Return the errors of the timing, by field: each kind requires its own field and excludes those of others."""
        kind = self.kind
        own = {'crontab': 'crontab', 'interval': 'interval', 'once': 'at'}
        errors = {}
        for of_kind, name in own.items():
            is_given = getattr(self, name) not in (None, '')
            if of_kind == kind and not is_given:
                errors[name] = _('Required for schedules of type {kind}.').format(kind=self.get_kind_display())
            elif of_kind != kind and is_given:
                errors[name] = _('Not used by schedules of type {kind}.').format(kind=self.get_kind_display())
        for name, parse in (
            ('crontab', due.parse_crontab), ('timezone', due.parse_timezone), ('interval', due.parse_interval),
        ):
            if value := getattr(self, name):
                try:
                    parse(value)
                except ValueError as exc:
                    errors.setdefault(name, str(exc))
        if self.start and self.end and self.start >= self.end:
            errors['end'] = _('The end must be later than the start.')
        return errors

    def _check_arguments(self):
        errors = {}
        if not isinstance(self.args, list):
            errors['args'] = _('Positional arguments must be a list.')
        if not isinstance(self.kwargs, dict):
            errors['kwargs'] = _('Keyword arguments must be an object.')
        for name in ('args', 'kwargs'):
            if to_jsonb(getattr(self, name))[1]:
                errors[name] = _('Contains unsupported values (NUL, NaN or infinity).')
            elif (number := other_number(getattr(self, name))) is not None:
                errors[name] = _(
                    'PostgreSQL would store the number {number} as a different one. Use text or another number.'
                ).format(number=number)
        if errors or self.task_id is None:
            return errors
        try:
            check_arguments(self.task, self.args, self.kwargs)
        except InvalidArguments as exc:
            return {'kwargs': str(exc)}
        return {}

    def _check_queue(self):
        from ..engine.catalogue.queues import check_choice

        try:
            check_choice(get_app(), self.queue)
        except QueueRefused as exc:
            return {'queue': str(exc)}
        return {}

    def _check_future(self):
        """Reject a change after which the schedule would never be due again."""
        try:
            following = due.next_due(self, timezone.now())
        except ValueError:
            return  # the fields have reported the error
        if following is None:
            field = 'at' if self.kind == ScheduleKindChoices.KIND_ONCE else 'end'
            raise ValidationError({field: _('Must be in the future: the schedule would never be due.')})

    # Saving

    def save(self, *args, update_fields=None, **kwargs):
        for name in ('args', 'kwargs', 'options'):
            if getattr(self, name) is None:  # Django would write JSON's `null` as SQL's
                setattr(self, name, self._meta.get_field(name).get_default())
        if self._state.adding and not self.is_read_only:
            self.branch = self.branch or branches.current()
        following = self._following()  # calculated before the row is locked
        with transaction.atomic():
            # GUARANTEE: beat's writes are not undone, and no run is due by an earlier timing. Beat cannot write while
            # the row is locked, and the stored values of its columns take precedence over those of this instance.
            stored = self._stored(lock=True)
            if stored is not None:
                self.last_run, self.next_run = stored['last_run'], stored['next_run']
                # Enabling it, or changing its owner, overrides beat's decision to disable it
                is_as_beat_left_it = not self.enabled and self.owner_id == stored['owner_id']
                self.stopped = stored['stopped'] if is_as_beat_left_it else None
                if update_fields is not None and self.stopped != stored['stopped']:
                    update_fields = {*update_fields, 'stopped'}
            if self._is_changed(stored, self.TIMING):
                if isinstance(following, ValueError):
                    raise following
                self.next_run = following
                if update_fields is not None:
                    update_fields = {*update_fields, 'next_run'}
            super().save(*args, update_fields=update_fields, **kwargs)

    def _following(self):
        """Return when it is due next, `None` if never, or the `ValueError` if its timing is invalid."""
        try:
            return due.next_due(self, timezone.now()) if self.enabled and self.present else None
        except ValueError as exc:
            return exc

    def _stored(self, lock=False):
        """Return the stored timing, call and state of the schedule, a dict, or `None` if it is not stored."""
        if self._state.adding:
            return None
        rows = type(self).objects.filter(pk=self.pk)
        if lock:
            rows = rows.select_for_update(no_key=True)  # runs that refer to it can still be inserted
        return rows.values(*self.TIMING, *self.CALL, 'queue', 'owner_id', 'last_run', 'next_run', 'stopped').first()

    def _is_changed(self, stored, names):
        return stored is None or any(stored[name] != getattr(self, name) for name in names)

    def _is_call_changed(self, stored):
        # As text: in Python, `1` equals `True`
        return stored is None or any(repr(stored[name]) != repr(getattr(self, name)) for name in self.CALL)

    def run_now(self, user: Any) -> 'CeleryResult':
        """Run the task now as a user (see `netbox_celery.engine.schedules.firing`), and return the row of the run."""
        from ..engine.schedules.firing import run_now
        return run_now(self, user)
    run_now.alters_data = True  # type: ignore[attr-defined]
