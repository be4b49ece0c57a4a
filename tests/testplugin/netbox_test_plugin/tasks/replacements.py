"""Tasks that replace themselves."""
from celery import current_app, shared_task

from netbox_celery.tasks import netbox_celery_task

from ..side import note, wait_at
from .failures import fail
from .gates import hold_late
from .shapes import echo, plain


@netbox_celery_task(name='netbox_test_plugin:replace')
def replace(self, task_id, how='task', **options):
    """Replace itself."""
    self.log('before the replacement')
    note(task_id, 'replaced')
    if how == 'chain':
        raise self.replace(echo.si('first').set(**options) | echo.si('last').set(**options))
    if how == 'failing':
        raise self.replace(fail.si('value').set(**options))
    if how == 'self':
        raise self.replace(replace.si('task', **options).set(**options))
    if how == 'unsent':
        raise self.replace(echo.si('x').set(connection=current_app.connection('redis://127.0.0.1:1/0'), retry=False))
    raise self.replace(echo.si('replacement').set(**options))


@shared_task(name='netbox_test_plugin:plain_replace', bind=True)
def plain_replace(self, value):
    raise self.replace(plain.si(value).set(queue=self.request.delivery_info['routing_key']))


@netbox_celery_task(name='netbox_test_plugin:replace_at')
def replace_at(self, task_id, gate):
    """Replace itself when the gate is open."""
    note(task_id, 'started')
    wait_at(gate)
    raise self.replace(noted.si(task_id).set(queue=self.request.delivery_info['routing_key']))


@netbox_celery_task(name='netbox_test_plugin:noted')
def noted(self, task_id, other):
    note(other, 'replaced')
    return other


@netbox_celery_task(name='netbox_test_plugin:replace_late', acks_late=True)
def replace_late(self, task_id, gate, **options):
    raise self.replace(hold_late.si(gate).set(**options))
