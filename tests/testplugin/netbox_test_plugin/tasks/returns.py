"""Tasks that return or pass on values that are hard to store."""
from uuid import UUID

from netbox_celery.tasks import netbox_celery_task

from ..side import note
from .failures import Unprintable


class UnprintableResult:
    __repr__ = Unprintable.__str__


class EncodedResult:
    """Cannot be written as JSON, nor as text."""

    def __init__(self, value=None):
        self.value = value

    def __json__(self):
        if self.value is None:
            raise KeyError('encoder')
        return self.value

    def __repr__(self):
        raise KeyError('text')


def nested(depth):
    value = 'the end'
    for __ in range(depth):
        value = [value]
    return value


RESULTS = {
    'none': lambda: None,
    'set': lambda: {1},
    'object': object,
    'unprintable': UnprintableResult,
    'huge': lambda: 'x' * 2_000_000,
    'odd': lambda: {'nul \x00': 'surrogate \ud800', 'number': float('nan')},
    'uuid': lambda: UUID(int=1),
    'floats': lambda: [1e23, 1e16, -0.0, 1.5, 10 ** 30],
    'order': lambda: {'z': 1, 'a': {'y': 1, 'x': 2}},
    'marker': lambda: {'__type__': 'nothing', '__value__': 1},
    'deep': lambda: nested(750),
    'digits': lambda: 10 ** 5000,
    'encoder': EncodedResult,
    'silent encoder': lambda: EncodedResult(1),
    'exception': lambda: ValueError('returned, not raised'),
}


@netbox_celery_task(name='netbox_test_plugin:answer')
def answer(self, task_id, what):
    """Return a value that a row or a result backend may refuse."""
    return RESULTS[what]()


@netbox_celery_task(name='netbox_test_plugin:go_deep', max_retries=2)
def go_deep(self, task_id, how, value=None):
    """Pass on a value that is nested too deeply, from the body."""
    note(task_id, 'ran')
    deep = nested(750)
    if how == 'retry':
        raise self.retry(args=[how, deep], countdown=0)
    if how == 'retry header':
        raise self.retry(countdown=0, headers={'x': deep})
    if how == 'replace':
        raise self.replace(answer.s(deep))
    if how == 'call':
        answer.delay(deep)
    if how == 'data':
        self.celery_result.update(data=deep)
    if how == 'state':
        self.update_state(state='MINE', meta={'x': deep, 'step': deep, 'current': 10 ** 30})
        self.update_state(state='PROGRESS', meta={'x': deep, 'current': 3})
    if how == 'success':
        self.celery_result.success(deep)
    if how == 'log':
        self.log(deep, level=deep, grouping=EncodedResult(), obj=deep)
        self.progress(EncodedResult(), value_max=10 ** 5000, step=EncodedResult())
        self.celery_result.update_value(EncodedResult(), value_step=1)
        self.log_info(EncodedResult())
    return 'done'
