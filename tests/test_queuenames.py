"""Names that no queue can have, with any broker."""
import pytest

from netbox_celery.queuenames import why_reserved


@pytest.mark.parametrize('name', [
    'unacked', 'unacked_index', 'unacked_mutex', 'unacked_x', '_kombu.binding.celery', '_kombu.binding_deadlines',
    '_kombu.binding_permanent.x', 'celery-task-meta-5', 'celery-task-meta-', 'celery-taskset-meta-5.j',
    'chord-unlock-5', 'celery\x06\x163', 'a\x00', 'a\nb', '\x7f', '\ud800', '', ' ', '\t', 'x' * 256, 'é' * 128,
    'amq.gen-x', 'amq.', 'celeryev', 'celeryev.5', 'celery.pidbox', 'celery@host.celery.pidbox',
    'x.reply.celery.pidbox', 'celery_delayed_27', 'ae.undeliver', 'rq:queue:default', None, 5, ['a'], {},
], ids=repr)
def test_reserved(name):
    assert why_reserved(name)


@pytest.mark.parametrize('name', [
    'celery', 'default', 'backup', 'a b', 'unacknowledged', 'my.unacked', 'Unacked', 'kombu', 'celery-task', 'amq',
    'celery@host.dq2', 'x' * 255, 'Straße', '任务', 'a:b', 'a/b', '-', '0', 'pidboxes', '*',
], ids=repr)
def test_free(name):
    assert why_reserved(name) == ''


def test_further_keys():
    assert why_reserved('mine', ('mine',)) and why_reserved('mine.5', ('mine',))
    assert why_reserved('min', ('mine',)) == ''
