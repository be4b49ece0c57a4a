"""The plugin's own tasks."""
from celery.schedules import crontab

from .engine.worker import retention
from .tasks import netbox_celery_task

__all__ = (
    'PRUNE',
    'prune',
)

PRUNE = 'netbox_celery:prune'


@netbox_celery_task(name=PRUNE, schedule=crontab(minute=15, hour=3))
def prune(self, task_id, days: int | None = None):
    """Delete old runs and their logs.

    Args:
        days: Number of days to keep finished runs; defaults to the setting `retention`
    """
    before = retention.cutoff(days)
    if before is None:
        self.log('Runs are kept forever')
        return None
    expected = retention.count_old(before, with_lines=False).runs
    self.log(f'Deleting {expected} runs that finished before {before:%Y-%m-%d %H:%M} UTC')

    def report(pruned):
        self.progress(pruned.runs, expected, step=f'{pruned.lines} log entries deleted')

    pruned = retention.prune(before, report=report, is_cancelled=self.is_cancelled)
    if pruned.is_busy:
        self.log_warning('Skipped: another process is already deleting old runs')
        return None
    self.log_success(f'Deleted {pruned.runs} runs and {pruned.lines} log entries')
    return {'runs': pruned.runs, 'lines': pruned.lines}
