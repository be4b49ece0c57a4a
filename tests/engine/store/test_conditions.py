"""Conditions on runs, as querysets and as SQL, and the index that serves them."""
from uuid import UUID, uuid4

import pytest
from django.db import connection

from netbox_celery.engine.store.conditions import HAS_OTHER_ROOT, IN_GROUP
from netbox_celery.models import CeleryResult
from tests.factories import make_result

pytestmark = pytest.mark.django_db

LOW, MIDDLE, HIGH = UUID(int=1), UUID(int=2), UUID(int=3)


def test_other_root():
    """A run whose root has a lower or a higher ID; neither a root, nor a run without a known root."""
    runs = {root_id: make_result(task_id=uuid4(), root_id=root_id) for root_id in (LOW, None, HIGH)}
    own = make_result(task_id=MIDDLE, root_id=MIDDLE)
    runs[MIDDLE] = own
    assert set(CeleryResult.objects.filter(HAS_OTHER_ROOT)) == {runs[LOW], runs[HIGH]}
    below, above = (make_result(task_id=UUID(int=MIDDLE.int + n), root_id=MIDDLE) for n in (-1, 1))
    assert set(CeleryResult.objects.filter(HAS_OTHER_ROOT, root_id=MIDDLE)) == {below, above}


def members(root_id, group_id, prefix=''):
    with connection.cursor() as cursor:
        cursor.execute(f'{prefix} SELECT id FROM netbox_celery_celeryresult WHERE {IN_GROUP}', {
            'root_id': root_id, 'group_id': group_id
        })
        return [value for value, in cursor.fetchall()]


def test_in_group():
    """The members of the group in that workflow, without the root."""
    group_id = uuid4()
    make_result(task_id=MIDDLE, root_id=MIDDLE, group_id=group_id)
    found = [make_result(task_id=id, root_id=MIDDLE, group_id=group_id) for id in (LOW, HIGH)]
    make_result(root_id=MIDDLE, group_id=uuid4()), make_result(root_id=uuid4(), group_id=group_id)
    assert sorted(members(MIDDLE, group_id)) == [run.pk for run in found]


@pytest.mark.parametrize('way', ['model', 'statement'])
def test_index(way):
    """The index with this condition serves both forms of the query."""
    index, = (index for index in CeleryResult._meta.indexes if index.condition == HAS_OTHER_ROOT)
    with connection.cursor() as cursor:
        cursor.execute('SET LOCAL enable_seqscan = off')
    if way == 'model':
        plan = CeleryResult.objects.filter(HAS_OTHER_ROOT, root_id=MIDDLE).order_by().explain()
    else:
        plan = '\n'.join(members(MIDDLE, LOW, 'EXPLAIN'))
    assert index.name in plan
