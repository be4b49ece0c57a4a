"""Calls that are deferred until a transaction is committed, and whose ID is known before.

`apply_async` is part of the transaction anyway, because its row is. The functions here defer the whole call with its
row, as Celery's own `delay_on_commit` does, but return a result, where Celery's functions return nothing.
"""
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from uuid import uuid4

from celery.contrib.django.task import DjangoTask
from celery.result import AsyncResult
from django.db import transaction

from ..store.branches import keep
from ..store.database import caller

__all__ = (
    'OnCommitTask',
    'call_on_commit',
)


def call_on_commit(
    task: Any, call: Callable[..., Any], options: Mapping[str, Any], using: str | None = None
) -> AsyncResult:
    """Make a call when the transaction is committed, or immediately if there is none.

    GUARANTEE: the ID that the caller gets before the commit leads to the end of the call. So a call that finds an
    active run to join does not become that run: its row records that it was ignored, and in favor of which run.

    Args:
        task: The task.
        call: Makes the call with the options that it is given; returns an `AsyncResult`.
        options: The options of the call.
        using: Alias of the database whose transaction counts; by default the one in which the call is made.

    Returns:
        The return value of the call, or an `AsyncResult` of its future run; after a rollback that run never exists.
    """
    using = caller().alias if using is None else using
    if not transaction.get_connection(using).in_atomic_block:
        returned: list[AsyncResult] = []
        # Without a transaction, Django calls it now, or refuses if autocommit is off
        transaction.on_commit(lambda: returned.append(call(**options)), using=using)
        return returned[0]
    options = {**options, 'task_id': str(options.get('task_id') or uuid4())}
    result = (options.get('result_cls') or task.AsyncResult)(options['task_id'])
    result.ignored = options.get('ignore_result', task.ignore_result)
    transaction.on_commit(keep(partial(call, netbox_id_is_known=True, **options)), using=using)
    return result


class OnCommitTask(DjangoTask):
    """Celery's class of tasks under Django, whose calls on commit return what `delay` and `apply_async` return."""
    abstract = True

    def delay_on_commit(self, *args: Any, **kwargs: Any) -> AsyncResult:
        """Call `delay` when the transaction is committed (see `celery.contrib.django.task.DjangoTask`)."""
        return self.apply_async_on_commit(args, kwargs)

    def apply_async_on_commit(
        self, args: Any = None, kwargs: Any = None, using: str | None = None, **options: Any
    ) -> AsyncResult:
        """Call `apply_async` when the transaction is committed (see `celery.contrib.django.task.DjangoTask`)."""
        return call_on_commit(self, partial(self.apply_async, args, kwargs), options, using)
