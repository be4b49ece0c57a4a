"""`netbox celery_prune`: delete old runs now."""
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from ...engine.worker import retention


class Command(BaseCommand):
    help = 'Delete old Celery runs and their logs.'

    def add_arguments(self, parser):
        parser.add_argument(
            '--days', type=int,
            help='Number of days to keep runs after they finish; defaults to the setting "retention"'
        )
        parser.add_argument('--dry-run', action='store_true', help='Only report how many runs would be deleted')

    def handle(self, *args, days, dry_run, **options):
        if days is not None and days < 1:
            raise CommandError('--days must be 1 or more')
        try:
            before = retention.cutoff(days)
        except ValueError as exc:
            raise CommandError(str(exc)) from exc
        if before is None:
            self.stdout.write('Runs are kept forever: the setting "retention", or JOB_RETENTION of NetBox, is 0.')
            return
        when = f'{timezone.localtime(before):%Y-%m-%d %H:%M:%S %Z}'
        if dry_run:
            old = retention.count_old(before)
            self.stdout.write(f'{old.runs} runs that finished before {when}, with {old.lines} lines of their logs')
            return
        pruned = retention.prune(before)
        if pruned.is_busy:
            raise CommandError('Another process is already deleting old runs')
        self.stdout.write(
            f'Deleted {pruned.runs} runs that finished before {when}, with {pruned.lines} lines of their logs'
        )
