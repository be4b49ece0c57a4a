"""Tasks whose messages a worker takes in a way of their own: no claim comes before their bodies.

A task's `Strategy` is what a worker's main process does with its messages. Celery's hands each to the pool, where the
run is claimed. One of the task's own may do anything: `celery-batches` gathers messages and runs the body once for all
of them. A row of such a call would wait for a claim that never comes, and its message would be sent again and again. So
these tasks are not tracked, and who asks for a row is refused. Nor can such a body be in the branch of a call: there is
none that all of its messages come from. So who calls one in a branch is refused, too.
"""
from celery.exceptions import CeleryError
from kombu.utils.imports import symbol_by_name

__all__ = (
    'has_own_strategy',
    'refuse_branch',
    'refuse_row',
    'strategy_of',
    'why_not_in_branch',
    'why_untracked',
)

DEFAULT = 'celery.worker.strategy:default'


def has_own_strategy(task):
    """Whether a worker takes a task's messages in a way of the task's own, by which no run would be claimed.

    A strategy may also do something beside Celery's, and hand each message to that: then its author says so
    (`strategy_claims`).

    Args:
        task: A task object, or `None` for one that this process does not know.
    """
    strategy = getattr(task, 'Strategy', DEFAULT)
    if strategy == DEFAULT or getattr(task, 'strategy_claims', False):
        return False
    from celery.worker.strategy import default  # whoever is no worker rarely needs it

    try:
        return symbol_by_name(strategy) is not default
    except (AttributeError, ImportError, ValueError):
        return True  # it is not Celery's


def strategy_of(task):
    """Return the name of a task's own strategy, or `None` if it is Celery's."""
    if not has_own_strategy(task):
        return None
    strategy = task.Strategy
    if isinstance(strategy, str):
        return strategy
    function = getattr(strategy, '__func__', strategy)
    return f'{getattr(function, "__module__", "")}.{getattr(function, "__qualname__", type(function).__qualname__)}'


def why_untracked(name, strategy):
    """Return in words why there can be no row for runs of a task."""
    return (
        f'{name} has a Strategy of its own ({strategy}), which takes its messages without claiming runs: they cannot '
        f'be tracked'
    )


def refuse_row(task, why='Call it by delay() or apply_async(), without netbox_track.'):
    """Refuse a call of such a task that asks for a row.

    Raises:
        celery.exceptions.CeleryError: Always.
    """
    raise CeleryError(f'{why_untracked(task.name, strategy_of(task))}. {why}')


def refuse_branch(task, branch):
    """Refuse a call of such a task that is made in a branch.

    GUARANTEE: what was called in a branch does not run in main instead.

    Raises:
        celery.exceptions.CeleryError: Always.
    """
    raise CeleryError(f'{why_not_in_branch(task, branch)}. Call it outside of the branch.')


def why_not_in_branch(task, branch):
    """Return in words why a task cannot run in a branch."""
    return (
        f'{task.name} has a Strategy of its own ({strategy_of(task)}), which runs its body in main: it cannot run in '
        f'the branch {branch}'
    )
