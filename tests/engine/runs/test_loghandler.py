"""A record of Python's logging becomes a line in the log of the run that its thread executes, and of no other."""
import logging
import threading

import pytest
from celery._state import _task_stack
from celery.app.task import Context
from celery.utils.log import task_logger

from netbox_celery.celery import app
from netbox_celery.engine.calls.run import Run
from netbox_celery.engine.runs import loghandler
from netbox_celery.engine.runs.loghandler import ConsoleFilter, RunLogHandler, install_log_handler, remove_log_handler
from netbox_celery.engine.store.recorder import recorder
from netbox_celery.models import CeleryLogEntry
from tests.factories import make_result
from tests.support import Unprintable

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def run():
    """A run that this thread executes."""
    result = make_result('running', claims=1, attempt=1)
    run = Run(str(result.task_id), id=result.pk, claims=1)
    task = app.tasks['netbox_celery:prune']
    task.request_stack.push(Context(id=run.task_id, netbox_run=run))
    _task_stack.push(task)
    yield run
    _task_stack.pop()
    task.request_stack.pop()


@pytest.fixture
def logger():
    logger = logging.Logger('tests.handler', level=1)
    logger.addHandler(RunLogHandler())
    return logger


def entries(run):
    assert recorder.flush(run)
    return list(CeleryLogEntry.objects.filter(result_id=run.id).order_by('pk').values_list('level', 'message'))


@pytest.mark.parametrize('level, expected', [
    (1, 10), (10, 10), (19, 10), (20, 20), (24, 20), (25, 25), (29, 25), (30, 30), (39, 30), (40, 40), (49, 40),
    (50, 50), (99, 50),
])
def test_levels(run, logger, level, expected):
    logger.log(level, 'of %s', level)
    assert entries(run) == [(expected, f'of {level}')]


def test_propagated_record(run, logger):
    """Two handlers see it, and it makes one line."""
    parent = logging.Logger('tests', level=1)
    parent.addHandler(RunLogHandler())
    logger.parent = parent
    logger.info('once')
    assert entries(run) == [(20, 'once')]


def test_refused_run(run, logger):
    run.refused = True
    logger.critical('nobody')
    assert not entries(run)


def test_thread_without_a_run(run, logger):
    thread = threading.Thread(target=logger.critical, args=('elsewhere',))
    thread.start()
    thread.join()
    logger.info('here')
    assert entries(run) == [(20, 'here')]


@pytest.mark.parametrize('arguments', [('%d', 'x'), ('%s %s', 1), (Unprintable(),)], ids=['type', 'number', 'text'])
def test_record_that_cannot_be_formatted(run, logger, capsys, arguments):
    """As `logging` does, the author's mistake is reported, and the task continues."""
    logger.error(*arguments)
    logger.info('goes on')
    assert entries(run) == [(20, 'goes on')]
    assert 'Logging error' in capsys.readouterr().err


def test_level_of_the_console():
    """A logger lowered for the logs of runs keeps its own level on the console; others are unaffected."""
    lowered, child, own, other = (logging.getLogger(f'tests_console{name}') for name in ('', '.child', '.own', '_b'))
    for logger in (lowered, own, other):
        logger.setLevel(logging.DEBUG)
    console = ConsoleFilter({lowered: logging.WARNING})

    def seen(logger, level):
        return console.filter(logger.makeRecord(logger.name, level, '', 1, '', (), None))
    assert [seen(lowered, 20), seen(child, 20), seen(lowered, 30), seen(child, 30)] == [False, False, True, True]
    assert seen(own, 10) and seen(other, 10)


def test_task_loggers_keep_their_parent():
    """Celery's task loggers propagate to Celery, also if a plugin's logger is made above them."""
    from celery.utils.log import get_task_logger

    below = get_task_logger('tests_plugin_of_ours.tasks')
    above = loghandler._logger('tests_plugin_of_ours')
    assert below.parent is task_logger
    assert above.parent is logging.root


def test_removed():
    """When the last worker of a process has stopped, logging is as it was before."""
    loggers = [logging.root, task_logger, logging.getLogger('netbox_example_plugin')]

    def state():
        return [(log.level, list(log.handlers), [list(handler.filters) for handler in log.handlers]) for log in loggers]
    before = state()
    install_log_handler()
    install_log_handler()
    assert state() != before
    remove_log_handler()
    assert state() == before
