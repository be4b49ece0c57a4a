"""Tasks with base classes, requests and strategies of their own, and with Pydantic models."""
import os
import time
from functools import cached_property

from celery import shared_task
from celery.contrib.abortable import AbortableTask
from celery.worker.request import Request
from celery.worker.strategy import default as default_strategy
from pydantic import BaseModel

from netbox_celery.tasks import CeleryBaseTask

from ..side import note, wait_at


class NotingRequest(Request):
    """The example of Celery's guide: called in the worker's parent."""

    def on_accepted(self, pid, time_accepted):
        note(self.id, 'accepted')
        return super().on_accepted(pid, time_accepted)

    def on_timeout(self, soft, timeout):
        note(self.id, f'timeout {"soft" if soft else "hard"} {timeout}')
        return super().on_timeout(soft, timeout)


def strategy(task, app, consumer, **options):
    handle = default_strategy(task, app, consumer, **options)

    def noting(message, body, *args, **kwargs):
        note(message.headers['id'], 'strategy')
        return handle(message, body, *args, **kwargs)
    return noting


class OwnRequest(CeleryBaseTask):
    abstract = True
    Request = NotingRequest


class OwnRequestByName(CeleryBaseTask):
    abstract = True
    Request = 'netbox_test_plugin.tasks.classes:NotingRequest'
    Strategy = 'netbox_test_plugin.tasks.classes:strategy'
    strategy_claims = True


def nap(self, task_id, seconds):
    time.sleep(seconds)
    return 'awake'


own_request = shared_task(
    name='netbox_test_plugin:own_request', base=OwnRequest, bind=True, soft_time_limit=0.5
)(nap)
own_request_by_name = shared_task(
    name='netbox_test_plugin:own_request_by_name', base=OwnRequestByName, bind=True, time_limit=1
)(nap)


class Counting(CeleryBaseTask):
    """Its tasks share a class; each keeps its own state."""
    abstract = True
    factor = 1

    def __init__(self):
        if 'NETBOX_TEST_SIDE' in os.environ:
            note(f'init-{self.name.split(":")[1]}', 'made')

    @cached_property
    def resource(self):
        note(f'resource-{self.name.split(":")[1]}', 'made')
        return os.getpid()

    def count(self, number):
        return [self.name.split(':')[1], self.resource, number * self.factor]

    def on_success(self, retval, task_id, args, kwargs):
        note(task_id, 'base on_success')


class CountingDouble(Counting):
    abstract = True
    factor = 2

    def on_success(self, retval, task_id, args, kwargs):
        note(task_id, 'double on_success')
        super().on_success(retval, task_id, args, kwargs)


def count(self, task_id, number):
    return self.count(number)


counting = {
    'single': shared_task(name='netbox_test_plugin:single', base=Counting, bind=True)(count),
    'double': shared_task(name='netbox_test_plugin:double', base=CountingDouble, bind=True)(count),
}


class Abortable(CeleryBaseTask, AbortableTask):
    """Can be aborted in Celery's own way."""
    abstract = True


@shared_task(name='netbox_test_plugin:abortable', base=Abortable, bind=True)
def abortable(self, task_id, gate):
    note(task_id, f'aborted {self.is_aborted()}')
    wait_at(gate)
    return f'aborted {self.is_aborted()}'


#
# Pydantic
#

class Person(BaseModel):
    name: str
    age: int = 0


@shared_task(name='netbox_test_plugin:greet', base=CeleryBaseTask, bind=True, pydantic=True)
def greet(self, task_id, person: Person, more: Person | None = None, *, word: str = 'Hello') -> Person:
    """Take Pydantic models, and return one."""
    assert isinstance(person, Person), type(person)
    assert more is None or isinstance(more, Person), type(more)
    return Person(name=f'{word} {person.name}', age=person.age + (more.age if more else 0))


@shared_task(name='netbox_test_plugin:greet_unbound', base=CeleryBaseTask, pydantic=True)
def greet_unbound(task_id, person: Person) -> Person:
    return Person(name=f'{task_id} {person.name}', age=person.age)
