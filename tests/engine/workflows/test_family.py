"""A cancelled workflow stays cancelled: of a cancel and a call by the cancelled run, the later sees the earlier."""
from uuid import uuid4

import pytest
from django.db import transaction

from netbox_celery.celery import app
from netbox_celery.engine.calls.call import Call
from netbox_celery.engine.sending.rows import INSERT, build_row
from netbox_celery.engine.workflows.family import BECAUSE, are_orphans, insert_child, mark_parts, members
from netbox_celery.models import CeleryResult
from tests.factories import make_result
from tests.support import in_thread

pytestmark = pytest.mark.django_db(transaction=True)


def child_of(parent_id):
    """Return the row of a call that another run makes."""
    options = {'task_id': str(uuid4()), 'parent_id': str(parent_id)}
    return build_row(Call(app, 'tests:child', (), {}, options))


def result(row):
    return CeleryResult.objects.get(task_id=row['task_id'])


@pytest.mark.parametrize('in_transaction', [False, True])
def test_child(in_transaction):
    """A child of a cancelled run is created as revoked; other children wait, also those of a run without a row."""
    cancelled, alive = make_result('running'), make_result('running')
    cancelled.cancel()
    rows = [child_of(it) for it in (cancelled.task_id, alive.task_id, uuid4())]
    if in_transaction:
        with transaction.atomic():
            inserted = [insert_child(INSERT, row) for row in rows]
    else:
        inserted = [insert_child(INSERT, row) for row in rows]

    assert [found[0][0] for found, __ in inserted] == [result(row).pk for row in rows]
    assert [(result(row).status, result(row).error) for row in rows] == [
        ('revoked', BECAUSE.format(parent_id=cancelled.task_id)), ('pending', ''), ('pending', '')
    ]
    assert [is_revoked for __, is_revoked in inserted] == [True, False, False]


def test_same_child_twice():
    """An existing row stays as it is, whatever happened to its parent."""
    parent = make_result('running')
    row = child_of(parent.task_id)
    insert_child(INSERT, row)
    parent.cancel()
    assert insert_child(INSERT, row) == ([], False)
    assert result(row).status == 'pending'


def test_child_waits_for_a_cancel():
    """A call waits for a cancel that is not committed yet."""
    parent = make_result('running')
    row = child_of(parent.task_id)
    with transaction.atomic():
        assert parent.cancel()
        thread, found = in_thread(lambda: insert_child(INSERT, row))
        thread.join(0.5)
        assert thread.is_alive()
    thread.join(30)
    assert found[0][1]
    assert result(row).status == 'revoked'


def test_cancel_rolled_back():
    parent = make_result('running')
    row = child_of(parent.task_id)
    with transaction.atomic():
        parent.cancel()
        thread, found = in_thread(lambda: insert_child(INSERT, row))
        thread.join(0.3)
        transaction.set_rollback(True)
    thread.join(30)
    assert found and not found[0][1]
    assert result(row).status == 'pending'


def test_cancel_during_the_tasks_transaction():
    """A task's own transaction locks nothing: the cancel succeeds, and a look after the commit finds it."""
    parent = make_result('running')
    row = child_of(parent.task_id)
    with transaction.atomic():
        id = insert_child(INSERT, row)[0][0][0]
        thread, found = in_thread(parent.cancel)
        thread.join(30)
        assert found == [True]
    assert result(row).status == 'pending'
    assert are_orphans([id], parent.task_id)
    assert (result(row).status, result(row).error) == ('revoked', BECAUSE.format(parent_id=parent.task_id))


def test_orphans():
    alive = make_result('running')
    waits = make_result('pending', parent_id=alive.task_id)
    for parent_id in (alive.task_id, uuid4()):
        assert not are_orphans([waits.pk], parent_id)
    waits.refresh_from_db()
    assert waits.status == 'pending'


def test_members():
    """All runs with the same root, asked from any of them; a root need not have a row."""
    root = make_result()
    root.root_id = root.task_id
    root.save()
    parts = [make_result(root_id=root.task_id) for __ in range(2)]
    rootless = [make_result(root_id=uuid4())]
    rootless.append(make_result(root_id=rootless[0].root_id))
    alone = make_result(root_id=None)
    for group in ([root, *parts], rootless, [alone]):
        for run in group:
            assert set(members(run)) == set(group)


def test_parts_that_are_done():
    """Finished parts of a chord are marked as cancelled, once; other runs are unchanged."""
    def make(status, **columns):
        return make_result(status, options={'chord': {'task': 'body'}}, **columns)
    done, running, failed = make('completed'), make('running'), make('errored')
    plain = make_result('completed')
    ids = [run.pk for run in (done, running, failed, plain)]
    assert mark_parts(ids)
    assert not mark_parts(ids)
    assert not mark_parts([])
    assert list(CeleryResult.objects.filter(cancelled__isnull=False)) == [done]
