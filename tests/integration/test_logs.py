"""The log of a run: whose lines, which text, when they are visible, and their limits."""
import json

import pytest
from django.contrib.contenttypes.models import ContentType
from netbox_test_plugin import tasks
from netbox_test_plugin.side import notes, open_gate
from netbox_test_plugin.tasks import threads as share

from dcim.models import Site
from netbox_celery.models import CeleryLogEntry, CeleryResult

from .support import ended, lines, row, until


def entries(run, *fields):
    return list(CeleryLogEntry.objects.filter(result__task_id=row(run).task_id).order_by('pk').values_list(*fields))


def test_ways_to_log(worker):
    """Each line has its text, level, heading and time, in order, in the run's own log."""
    result = worker.run(tasks.say_all)

    assert entries(result, 'level', 'grouping', 'message') == [
        (10, 'main', 'debug'), (20, 'group', 'info'), (25, 'main', 'success'), (30, 'main', 'warning'),
        (40, 'main', 'failure'), (50, 'main', 'critical'), (20, 'main', "['not', 'text']"),
        (20, 'main', '<Unprintable: str() raised RuntimeError>'),
        (20, 'main', 'two\nlines\tand a tab'),
    ]
    times = [created for created, in entries(result, 'created')]
    assert times == sorted(times)
    assert result.started <= times[0] <= times[-1] <= result.completed
    assert {attempt for attempt, in entries(result, 'attempt')} == {1}


def test_runs_in_parallel_keep_their_lines(worker):
    """Twenty runs at the same time, on threads of one process: each has its own lines, and all of them."""
    runs = {word: worker.send(tasks.say_mine, word, 30) for word in map(str, range(20))}

    for word, run in runs.items():
        assert ended(run, 60).result == word
        expected = []
        for number in range(30):
            expected += [f'{word} {number}', f'{word} logger {number}']
        assert lines(run) == expected


def expected_of(run):
    """The lines of the threads of `share_out`."""
    return sorted(f'{run.id} {what} {number}' for number in range(share.COUNT) for what in ('logs', 'is heard'))


@pytest.mark.parametrize('how', ['plain', 'context', 'asyncio'])
def test_threads_of_a_body(worker, how):
    """Lines of threads that a body starts are in its run's log."""
    run = worker.send(share.share_out, how)

    result = ended(run)
    assert sorted(lines(run)) == expected_of(run)
    assert (result.value, result.result) == (share.COUNT, [False] * share.COUNT)


@pytest.mark.parametrize('how', ['context', 'asyncio'])
def test_threads_of_several_bodies(threads, gate, how):
    """In a pool of threads each run has the lines of what was started in a copy of its context."""
    runs = [threads.send(share.share_out, how, gate) for __ in range(4)]
    until(lambda: all(row(run).status == 'running' for run in runs))
    open_gate(gate)

    for run in runs:
        assert ended(run).value == share.COUNT
        assert sorted(lines(run)) == expected_of(run)


def test_threads_without_a_context(threads, gate):
    """Without the context, no line is in another run's log."""
    runs = [threads.send(share.share_out, 'plain', gate) for __ in range(4)]
    until(lambda: all(row(run).status == 'running' for run in runs))
    open_gate(gate)

    for run in runs:
        assert ended(run).status == 'completed'
        assert set(lines(run)) <= set(expected_of(run))


def test_threads_without_a_run(worker):
    """Lines for a task that is not active are in no run's log, also not in that of a finished run."""
    over = worker.run(share.share_out, 'context')
    outcome = share.share_out_untracked.apply_async(('context',), queue=worker.queue)
    assert outcome.get(timeout=20) == [False] * share.COUNT
    assert len(lines(over)) == 2 * share.COUNT


def test_python_logging(worker):
    """Records of Celery's task loggers and of plugins' loggers are in the run's log, with levels and tracebacks."""
    result = worker.run(tasks.use_logging)

    found = entries(result, 'level', 'message')
    assert found[:2] == [(20, 'task logger 1'), (30, 'plugin logger')]
    assert found[2][0] == 40
    assert found[2][1].startswith('with traceback\nTraceback (most recent call last):')
    assert found[2][1].endswith('ValueError: caught')
    # A line whose arguments do not fit is the author's mistake: it is reported in the worker's log
    assert len(found) == 3
    until(lambda: 'foreign logger' in worker.output and 'task logger 1' in worker.output)


def test_python_logging_on_a_quiet_worker(make_worker):
    """The level of a worker's console does not affect the runs' logs, nor the other way round."""
    worker = make_worker('quiet', concurrency=1, options=['-l', 'WARNING'])
    worker.command.remove('INFO')
    worker.command.remove('-l')
    worker.start()
    result = ended(worker.send(tasks.say_on_a_quiet_worker), 90)

    assert entries(result, 'level', 'message') == [
        (20, 'info of the task'), (20, 'info of the plugin'), (30, 'warning')
    ]
    until(lambda: 'warning' in worker.output)
    assert 'info of the' not in worker.output


def test_seen_while_the_transaction_is_open(worker, gate):
    """Lines and progress are visible in half a second while the task's transaction is open, and after its rollback."""
    run = worker.send(tasks.open_transaction, gate, 'open')
    until(lambda: notes(run.id))

    until(lambda: lines(run) == ['in the transaction'], 1)
    result = until(lambda: (found := row(run)).value == 3 and found, 1)
    assert (result.value_max, result.step, result.status) == (10, 'inside', 'running')
    assert not Site.objects.exists()

    open_gate(gate)
    assert ended(run).error == 'ValueError: rolled back'
    assert lines(run) == ['in the transaction']
    assert row(run).value == 3
    assert not Site.objects.exists()


def test_broken_transaction(worker):
    """A body can still log after PostgreSQL refused a statement, also about an object."""
    result = worker.run(tasks.broken_transaction)

    assert (result.status, result.result) == ('completed', 'went on')
    assert lines(result) == ['said all the same']


def test_lines_about_objects(prefork):
    """A line has the object that it is about."""
    site = Site.objects.create(name='s', slug='s')
    result = prefork.run(tasks.say_about, site.pk)

    content_type = ContentType.objects.get_for_model(Site).pk
    assert entries(result, 'object_type', 'object_id') == [(content_type, site.pk), (None, None)]


@pytest.mark.parametrize('message, expected', [
    ('nul \x00 lone \ud800 end', 'nul \ufffd lone \ufffd end'),
    ('\x1b[1;31mred\x1b[0m \x1b]0;title\x07bell\x07 \x1b[2Jclear', 'red bell clear'),
    ('tab\tline\r\nend\\N \\x41 {"a": 1}', 'tab\tline\r\nend\\N \\x41 {"a": 1}'),
    ('', ''),
    ('émoji 🐘 <script>alert(1)</script>', 'émoji 🐘 <script>alert(1)</script>'),
], ids=['nul', 'ansi', 'copy', 'empty', 'unicode'])
def test_odd_lines(prefork, message, expected):
    """No text does harm: what PostgreSQL cannot hold is replaced, control sequences are dropped, line breaks stay."""
    result = prefork.run(tasks.say, message)

    assert (result.status, lines(result)) == ('completed', [expected])


def test_line_of_ten_megabytes(worker):
    """A line of 10 MB is cut, and says by how much."""
    result = worker.run(tasks.say_much, 10_000_000)

    line, = lines(result)
    assert line == 'x' * 10_000 + '… [cut: 9,990,000 of 10,000,000 characters left out]'


def test_too_many_lines(worker):
    """A run's log has a limit, and says how many more lines were left out."""
    result = worker.run(tasks.say, 'line', 2_345)

    found = lines(result)
    assert len(found) == 2_001
    assert found[-1] == 'The log is limited to 2,000 lines: 345 more were left out.'
    assert set(found[:-1]) == {'line'}


def test_too_many_lines_over_all_attempts(worker):
    """The limit applies to all attempts of the run together."""
    result = worker.run(tasks.say_and_retry, 1_500)

    found = entries(result, 'attempt', 'message')
    assert len(found) == 2_001
    assert found.count((1, 'line')) == 1_500
    assert found[-1] == (2, 'The log is limited to 2,000 lines: 1,000 more were left out.')


@pytest.mark.parametrize('options, expected', [
    ({'level': 99, 'grouping': 'g' * 500}, (99, 'g' * 100)),
    ({'level': 1_000_000, 'grouping': None}, (32_767, 'None')),
    ({'level': 'warning', 'grouping': ['a']}, (20, "['a']")),
    ({'level': -1}, (0, 'main')),
], ids=str)
def test_odd_levels_and_headings(prefork, options, expected):
    """An invalid level or a very long heading costs no line, neither of this run nor of others."""
    beside = [prefork.send(tasks.say, 'beside', 50) for __ in range(3)]
    result = prefork.run(tasks.say, 'x', kwargs=options)

    assert entries(result, 'level', 'grouping', 'message') == [(*expected, 'x')]
    assert [len(lines(ended(run))) for run in beside] == [50] * 3


def test_log_of_a_deleted_run(worker, gate):
    """Lines of a run that was deleted meanwhile are dropped; those of other runs are not."""
    deleted, kept = worker.send(tasks.hold, gate, 3), worker.send(tasks.hold, gate, 3)
    until(lambda: notes(deleted.id) and notes(kept.id))
    CeleryResult.objects.filter(task_id=deleted.id).delete()
    open_gate(gate)

    assert ended(kept).status == 'completed'
    assert lines(kept) == ['line 0', 'line 1', 'line 2', 'after the gate']
    assert worker.run(tasks.say, 'x').status == 'completed'


def test_lines_of_a_failing_run(worker):
    """The last line before the end is visible when the end is."""
    for __ in range(20):
        result = worker.run(tasks.fail, 'value')
        assert lines(result) == ['about to fail']


def test_large_progress_data(prefork):
    """Data that is too large to show is cut, and says so."""
    result = prefork.run(tasks.show, 200_000)

    assert 'cut:' in str(result.data)
    assert len(json.dumps(result.data)) < 70_000


@pytest.mark.parametrize('value', ['not a number', 10 ** 30, float('nan'), None, [1]])
def test_odd_progress(prefork, value):
    """Progress that cannot be shown is left out: no task fails because of it."""
    assert prefork.run(tasks.show_progress, value).status == 'completed'
    result = prefork.run(tasks.show_progress, 7.9)

    assert (result.status, result.value) == ('completed', 7)
