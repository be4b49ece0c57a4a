"""Tasks of the plugin's own."""
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
    """Delete old runs, and their logs.

    Args:
        days: For how many days after their end runs are kept; by default as the setting `retention` says
    """
    before = retention.cutoff(days)
    if before is None:
        self.log('Runs are kept for ever')
        return None
    expected = retention.count_old(before, with_lines=False).runs
    self.log(f'Deleting what ended before {before:%Y-%m-%d %H:%M} UTC: {expected} runs')

    def report(pruned):
        self.progress(pruned.runs, expected, step=f'{pruned.lines} lines of logs deleted')

    pruned = retention.prune(before, report=report, is_cancelled=self.is_cancelled)
    if pruned.is_busy:
        self.log_warning('Nothing done: old runs are being deleted already')
        return None
    self.log_success(f'Deleted {pruned.runs} runs and {pruned.lines} lines of their logs')
    return {'runs': pruned.runs, 'lines': pruned.lines}
