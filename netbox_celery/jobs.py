"""The plugin's NetBox background jobs, which `netbox rqworker` runs: for installations without beat."""
from datetime import timedelta

from django.utils import timezone

from core.choices import JobIntervalChoices
from netbox.jobs import JobRunner, system_job

from .engine.worker import retention
from .housekeeping import PRUNE
from .models import CelerySchedule

__all__ = (
    'PruneJob',
)


@system_job(interval=JobIntervalChoices.INTERVAL_DAILY)
class PruneJob(JobRunner):
    """Delete old runs, unless beat does."""

    class Meta:
        name = 'Celery: delete old runs'

    def run(self, *args, **kwargs):
        recently = timezone.now() - timedelta(days=2)
        if CelerySchedule.objects.filter(name=PRUNE, enabled=True, last_run__gt=recently).exists():
            self.logger.info('Skipped: beat runs the schedule %s', PRUNE)
            return
        before = retention.cutoff()
        if before is None:
            self.logger.info('Runs are kept forever')
            return
        pruned = retention.prune(before)
        if pruned.is_busy:
            self.logger.info('Skipped: another process is already deleting old runs')
        else:
            self.logger.info('Deleted %s runs and %s log entries', pruned.runs, pruned.lines)
