"""Finds tasks that cannot be tracked, because their own `Strategy` runs their bodies without a claim.

A task's `Strategy` defines what a worker's main process does with its messages. Celery's passes each message to the
pool, where the run is claimed. A strategy of the task's own may do anything: `celery-batches` collects messages and
runs the body once for all of them. The row of such a call would wait for a claim that never happens, and its message
would be sent again and again. So these tasks are not tracked, and a call that asks for a row is refused. Such a body
cannot run in the branch of a call either, because its messages may come from different branches. So a call in a branch
is refused, too.
"""
from typing import Any, NoReturn

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


def has_own_strategy(task: Any) -> bool:
    """Whether a task has a strategy of its own, with which no run would be claimed.

    A strategy may also pass each message on to Celery's: then its author declares that (`strategy_claims`).

    Args:
        task: A task object, or `None` for one that this process does not know.
    """
    strategy = getattr(task, 'Strategy', DEFAULT)
    if strategy == DEFAULT or getattr(task, 'strategy_claims', False):
        return False
    from celery.worker.strategy import default  # outside of a worker it is rarely needed

    try:
        return symbol_by_name(strategy) is not default
    except (AttributeError, ImportError, ValueError):
        return True  # it is not Celery's


def strategy_of(task: Any) -> str | None:
    """Return the name of a task's own strategy, or `None` if it is Celery's."""
    if not has_own_strategy(task):
        return None
    strategy = task.Strategy
    if isinstance(strategy, str):
        return strategy
    function = getattr(strategy, '__func__', strategy)
    return f'{getattr(function, "__module__", "")}.{getattr(function, "__qualname__", type(function).__qualname__)}'


def why_untracked(name: str, strategy: str | None) -> str:
    """Return the reason why runs of a task cannot have rows."""
    return (
        f'{name} has a custom Strategy ({strategy}), which takes its messages without claiming runs: they cannot '
        f'be tracked'
    )


def refuse_row(task: Any, why: str = 'Call it by delay() or apply_async(), without netbox_track.') -> NoReturn:
    """Refuse a call of such a task that asks for a row.

    Raises:
        celery.exceptions.CeleryError: Always.
    """
    raise CeleryError(f'{why_untracked(task.name, strategy_of(task))}. {why}')


def refuse_branch(task: Any, branch: str) -> NoReturn:
    """Refuse a call of such a task in a branch.

    GUARANTEE: a task that was called in a branch does not run in main instead.

    Raises:
        celery.exceptions.CeleryError: Always.
    """
    raise CeleryError(f'{why_not_in_branch(task, branch)}. Call it outside of the branch.')


def why_not_in_branch(task: Any, branch: str) -> str:
    """Return the reason why a task cannot run in a branch."""
    return (
        f'{task.name} has a custom Strategy ({strategy_of(task)}), which runs its body in main: it cannot run in '
        f'the branch {branch}'
    )
