"""The schedules: what runs by itself, when, and in whose name.

Beat (`netbox_celery.scheduler`) goes by `next_run`. Two write it: beat, together with the run that was due, and
`save()`, when somebody changes what says when. So what beat has done is never undone by a form that was open meanwhile.
The same goes for `stopped`: beat sets it when it disables a schedule, and `save()` clears it when people take over.
"""
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
from ..engine.store.redaction import hide, shown
from .about import AboutObject
from .fields import IntervalField, TimeField, with_plain_payloads

__all__ = (
    'CelerySchedule',
)


def default_timezone():
    return settings.TIME_ZONE


class CelerySchedule(NetBoxModel, AboutObject):
    """A task that runs by itself: by a crontab, at intervals, or once."""
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
        help_text=_('What was due while a schedule was disabled is not made up for')
    )
    origin = models.CharField(
        verbose_name=_('origin'),
        max_length=20,
        choices=ScheduleOriginChoices,
        default=ScheduleOriginChoices.ORIGIN_USER,
        editable=False,
        help_text=_('Who says what it runs, and when')
    )
    present = models.BooleanField(
        verbose_name=_('present'),
        default=True,
        editable=False,
        help_text=_('Whether the settings, or the code, still have it; without them it does not run')
    )
    owner = models.ForeignKey(
        to=settings.AUTH_USER_MODEL,
        on_delete=models.SET_NULL,
        related_name='+',
        verbose_name=_('owner'),
        blank=True,
        null=True,
        help_text=_('Under whose name it runs; they need the permission to run the task')
    )

    # When
    kind = models.CharField(
        verbose_name=_('kind'),
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
        help_text=_('Where the clock hangs that the crontab goes by')
    )
    interval = IntervalField(
        verbose_name=_('interval'),
        validators=(MinValueValidator(1),),
        blank=True,
        null=True,
        help_text=_('Seconds from one run to the next')
    )
    at = TimeField(
        verbose_name=_('at'),
        blank=True,
        null=True,
        help_text=_('The time of the only run')
    )
    start = TimeField(
        verbose_name=_('start'),
        blank=True,
        null=True,
        help_text=_('Not due before; an interval is counted from here')
    )
    end = TimeField(
        verbose_name=_('end'),
        blank=True,
        null=True,
        help_text=_('Not due after')
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
        help_text=_('With Redis 0 is the highest, with RabbitMQ the lowest')
    )
    expires = models.PositiveIntegerField(
        verbose_name=_('expires'),
        validators=(MinValueValidator(1),),
        blank=True,
        null=True,
        help_text=_('A run that no worker has begun so many seconds after it was due is given up')
    )
    options = models.JSONField(
        verbose_name=_('further options'),
        encoder=PayloadEncoder,
        decoder=PayloadDecoder,
        default=dict,
        blank=True,
        editable=False,
        help_text=_("Options of `apply_async` that Celery's settings give it")
    )
    branch = models.CharField(
        verbose_name=_('branch'),
        max_length=100,
        blank=True,
        default='',
        db_default='',
        editable=False,
        help_text=_('Schema ID of the branch that its runs read and change (NetBox Branching); empty for main')
    )

    # If not all goes by the clock
    missed = models.CharField(
        verbose_name=_('missed runs'),
        max_length=20,
        choices=ScheduleMissedChoices,
        default=ScheduleMissedChoices.MISSED_RUN_ONCE,
        help_text=_('What becomes of times that were due while no beat was running')
    )
    missed_max = models.PositiveSmallIntegerField(
        verbose_name=_('most missed runs'),
        validators=(MinValueValidator(1), MaxValueValidator(1000)),
        default=10,
        help_text=_('If all missed runs are made up for: how many of them at the most, the latest ones')
    )
    overlap = models.CharField(
        verbose_name=_('overlap'),
        max_length=20,
        choices=ScheduleOverlapChoices,
        default=ScheduleOverlapChoices.OVERLAP_ALLOW,
        help_text=_('What becomes of a run that is due while an earlier one has not ended')
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
        help_text=_('When it is due next')
    )
    stopped = TimeField(
        verbose_name=_('stopped'),
        blank=True,
        null=True,
        editable=False,
        help_text=_('When beat disabled it, because its owner could not run its task')
    )

    #: What says when it is due.
    TIMING = ('kind', 'crontab', 'timezone', 'interval', 'at', 'start', 'end', 'enabled', 'present')
    #: What it runs, so far as the task's signature has a say in it.
    CALL = ('task_id', 'args', 'kwargs')
    #: What the settings, or the code, say of a schedule that comes from there.
    SOURCED = (
        'name', 'origin', 'kind', 'crontab', 'timezone', 'interval', 'at', 'start', 'end', 'task', 'args', 'kwargs',
        'queue', 'priority', 'expires', 'options',
    )

    #: NetBox's own is the address of a page that only NetBox's models have: a Help button that leads nowhere.
    docs_url = None

    clone_fields = (
        'description', 'enabled', 'kind', 'crontab', 'timezone', 'interval', 'at', 'start', 'end', 'task', 'queue',
        'priority', 'expires', 'object', 'missed', 'missed_max', 'overlap',
    )

    class Meta:
        ordering = ('name',)
        indexes = (
            # What beat looks at every few seconds
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
        """Leave out of the change log what beat writes, and what is secret."""
        exclude = [*(exclude or ()), 'last_run', 'next_run', 'stopped']
        return hide(super(CelerySchedule, with_plain_payloads(self, exclude)).serialize_object(exclude=exclude))

    def clone(self):
        arguments = {
            name: dumps_any(value)
            for name in ('args', 'kwargs') if (value := getattr(self, name)) and not self.hides(name)
        }
        return super().clone() | arguments

    def hides(self, field):
        """Whether the options of a schedule of the settings hide its `args` or `kwargs` (`argsrepr`, `kwargsrepr`)."""
        return isinstance(self.options, dict) and self.options.get(f'{field}repr') is not None

    @property
    def display_args(self):
        """Arguments as a person reads them: the `argsrepr` of its options if there is one, else plain JSON."""
        return plain(self.options['argsrepr']) if self.hides('args') else shown(self.args)

    @property
    def display_kwargs(self):
        """Keyword arguments as a person reads them (see `display_args`)."""
        return plain(self.options['kwargsrepr']) if self.hides('kwargs') else shown(self.kwargs)

    @property
    def display_options(self):
        """Options as a person reads them (see `CeleryResult.display_options`)."""
        return shown({'options': self.options or {}})['options']

    @property
    def is_read_only(self):
        """Whether the settings, or the code, say what it runs, and when: the fields in `SOURCED` are theirs."""
        return self.origin != ScheduleOriginChoices.ORIGIN_USER

    @property
    def in_words(self):
        """When it is due, in words."""
        return due.describe(self)

    def due_times(self, after=None):
        """Yield the times at which the schedule is due from now on, or after a time: aware `datetime`s.

        They are those of a form that is being filled in as well, where there is no `next_run` yet.
        """
        if after is None:
            if not self._state.adding and self.next_run is not None:
                yield self.next_run
            after = self.next_run or timezone.now()
        yield from due.due_times(self, after)

    # Validation

    def clean_fields(self, exclude=None):
        # What cannot be written as JSON nothing else is to descend into; `clean()` says what is wrong with it
        super().clean_fields({*(exclude or ()), *self._unwritable()})

    def _unwritable(self):
        """Return what is wrong with the fields that cannot be written as JSON, or are nested too deeply."""
        errors = {}
        for name in ('args', 'kwargs', 'options'):
            try:
                to_jsonb(getattr(self, name))
            except (TypeError, ValueError) as exc:
                errors[name] = _('This cannot be sent: {error}').format(error=exc)
        return errors

    def clean(self):
        stored = self._stored()
        # The code may have changed, a time zone be gone, or an earlier version have stored what cannot be sent: what
        # nobody touches keeps nobody from switching it off
        is_resumed = self.enabled and not (stored and stored['enabled'])
        is_called_otherwise = is_resumed or self._is_called_otherwise(stored)
        if is_called_otherwise and (errors := self._unwritable()):
            raise ValidationError(errors)
        super().clean()
        self._check_source()
        errors = {}
        if is_resumed or self._is_changed(stored, set(self.TIMING) - {'enabled'}):
            errors |= self._check_timing()
        if is_called_otherwise:
            errors |= self._check_arguments()
        if self.queue and self._is_changed(stored, ('queue',)):
            errors |= self._check_queue()
        if errors:
            raise ValidationError(errors)
        if self.enabled and self._is_changed(stored, self.TIMING):
            self._check_future()

    def _check_source(self):
        """Refuse to change what the settings, or the code, would change back."""
        before = None if self._state.adding else type(self).objects.filter(pk=self.pk).first()
        if before is None or not before.is_read_only:
            return
        fields = map(self._meta.get_field, self.SOURCED)
        if changed := [f.name for f in fields if getattr(before, f.attname) != getattr(self, f.attname)]:
            raise ValidationError({
                name: _('This schedule comes from {origin}: this is changed there.').format(
                    origin=before.get_origin_display()
                ) for name in changed
            })

    def _check_timing(self):
        """Return what is wrong with the fields that say when, by field: a kind has what it needs and nothing else."""
        kind = self.kind
        own = {'crontab': 'crontab', 'interval': 'interval', 'once': 'at'}
        errors = {}
        for of_kind, name in own.items():
            is_given = getattr(self, name) not in (None, '')
            if of_kind == kind and not is_given:
                errors[name] = _('A schedule of this kind needs it.')
            elif of_kind != kind and is_given:
                errors[name] = _('A schedule of this kind has none.')
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
                errors[name] = _('It holds what cannot be stored, such as a NUL character or a number that is none.')
            elif (number := other_number(getattr(self, name))) is not None:
                errors[name] = _(
                    'PostgreSQL would store the number {number} as another one. Give it as text, or another number.'
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
        """Refuse a schedule that is never due again, unless that is what became of it."""
        try:
            following = due.next_due(self, timezone.now())
        except ValueError:
            return  # what is wrong has been said by the fields
        if following is None:
            field = 'at' if self.kind == ScheduleKindChoices.KIND_ONCE else 'end'
            raise ValidationError({field: _('It would never be due: this must lie in the future.')})

    # Saving

    def save(self, *args, update_fields=None, **kwargs):
        for name in ('args', 'kwargs', 'options'):
            if getattr(self, name) is None:  # the `null` of JSON would be written as that of SQL
                setattr(self, name, self._meta.get_field(name).get_default())
        if self._state.adding and not self.is_read_only:
            self.branch = self.branch or branches.current()
        following = self._following()  # reckoned before the row is locked
        with transaction.atomic():
            # GUARANTEE: beat's writes are not undone, and nothing is due that was due under other times. The row is
            # locked, so beat is not at it; what it writes is what is stored, whatever this instance holds.
            stored = self._stored(lock=True)
            if stored is not None:
                self.last_run, self.next_run = stored['last_run'], stored['next_run']
                # Whoever enables it, or becomes its owner, decides from then on whether it is to run
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
        """Return when it is due next, `None` if it is not, or the `ValueError` that says why nobody can tell."""
        try:
            return due.next_due(self, timezone.now()) if self.enabled and self.present else None
        except ValueError as exc:
            return exc

    def _stored(self, lock=False):
        """Return what the stored schedule runs and when, a dict, or `None` if it is not stored."""
        if self._state.adding:
            return None
        rows = type(self).objects.filter(pk=self.pk)
        if lock:
            rows = rows.select_for_update(no_key=True)  # runs may be started that name the schedule
        return rows.values(*self.TIMING, *self.CALL, 'queue', 'owner_id', 'last_run', 'next_run', 'stopped').first()

    def _is_changed(self, stored, names):
        return stored is None or any(stored[name] != getattr(self, name) for name in names)

    def _is_called_otherwise(self, stored):
        # As text: in Python, `1` is the same as `True`
        return stored is None or any(repr(stored[name]) != repr(getattr(self, name)) for name in self.CALL)

    def run_now(self, user):
        """Run the task now, in the name of a user (`netbox_celery.engine.schedules.firing`). Returns the row."""
        from ..engine.schedules.firing import run_now
        return run_now(self, user)
    run_now.alters_data = True
