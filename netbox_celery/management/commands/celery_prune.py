"""`netbox celery_prune`: delete old runs now."""
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from ...engine.worker import retention


class Command(BaseCommand):
    help = "Delete the results of Celery's tasks that have ended long ago, and their logs."

    def add_arguments(self, parser):
        parser.add_argument(
            '--days', type=int,
            help='For how many days after their end they are kept; by default as the setting "retention" says'
        )
        parser.add_argument('--dry-run', action='store_true', help='Only say how many there are')

    def handle(self, *args, days, dry_run, **options):
        if days is not None and days < 1:
            raise CommandError('--days must be 1 or more')
        try:
            before = retention.cutoff(days)
        except ValueError as exc:
            raise CommandError(str(exc)) from exc
        if before is None:
            self.stdout.write('They are kept for ever: the setting "retention", or NetBox\'s JOB_RETENTION, is 0.')
            return
        when = f'{timezone.localtime(before):%Y-%m-%d %H:%M:%S %Z}'
        if dry_run:
            old = retention.count_old(before)
            self.stdout.write(f'{old.runs} results that ended before {when}, with {old.lines} lines of their logs')
            return
        pruned = retention.prune(before)
        if pruned.is_busy:
            raise CommandError('They are being deleted already')
        self.stdout.write(
            f'Deleted {pruned.runs} results that ended before {when}, with {pruned.lines} lines of their logs'
        )
