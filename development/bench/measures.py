"""The measurements. Each takes a `Stage` and returns `Figure`s; the first one has an aim."""

import json
import random
import time
from collections import defaultdict
from datetime import UTC, datetime

from . import others
from .report import Figure, ratio

__all__ = (
    'MEASURES',
)


def in_turns(rounds, *functions):
    """
    Call functions in turns, the order reversed each time, and return the list of results of each.

    Other load on the machine affects the side more that waits more. So only the half of the rounds with the least other
    load counts, and that load is reported.
    """
    results = []
    for number in range(rounds):
        with others.watched() as share:
            order = range(len(functions))
            values = {index: functions[index]() for index in (order if number % 2 == 0 else reversed(order))}
        results.append((share(), [values[index] for index in range(len(functions))]))
    quiet = sorted(results, key=lambda result: result[0])[:(rounds + 1) // 2]
    others.shares = [share for share, __ in quiet]
    return [list(values) for values in zip(*(values for __, values in quiet))]


#
# Tasks that do nothing
#

def drain(stage):
    """
    Fill a queue, then start a worker, and count from the first to the last completion.
    """
    number = 2000 if stage.quick else 4000
    first_runs, effort = [], {'bare': defaultdict(list), 'tracked': defaultdict(list)}

    def work_off(kind, count_done):
        """Run a worker until all is done, and record the processor time without its start."""
        with stage.worker(kind) as worker:
            done = stage.wait(count_done, worker, interval=0.02)
            before = stage.cpu_time(worker)
            stage.wait(lambda: count_done() == number, worker)
            for part, used in stage.cpu_time(worker).items():
                effort[kind][part].append((used - before[part]) / (number - done) * 1000)
            effort[kind]['all'].append(sum(effort[kind][part][-1] for part in before))
            return worker

    with stage.probe('bare') as bare_probe, stage.probe('tracked') as tracked_probe:

        def bare():
            keys = [f'celery-task-meta-{id}' for id in bare_probe.do('fill', number=number)]
            redis = stage.redis['bare']
            work_off('bare', lambda: redis.exists(*keys))
            # Celery stores when each was done
            times = sorted(datetime.fromisoformat(json.loads(result)['date_done']) for result in redis.mget(keys))
            redis.flushdb()
            return (number - 1) / (times[-1] - times[0]).total_seconds()

        def tracked():
            start, = stage.query('SELECT COALESCE(max(id), 0) FROM netbox_celery_celeryresult')
            tracked_probe.do('fill', number=number)
            worker = work_off('tracked', lambda: number - stage.query(
                'SELECT count(*) FROM netbox_celery_celeryresult WHERE completed IS NULL'
            )[0])
            done, seconds, first = stage.query(
                "SELECT count(*) FILTER (WHERE status = 'completed'), "
                'extract(epoch FROM max(completed) - min(completed))::float, '
                'extract(epoch FROM min(started))::float FROM netbox_celery_celeryresult WHERE id > %s', start
            )
            if done != number:
                raise RuntimeError(f'{done} of {number} runs are completed')
            first_runs.append(first - worker.started)
            stage.redis['tracked'].flushdb()
            return (number - 1) / seconds

        slow, fast = in_turns(3 if stage.quick else 7, tracked, bare)
    return [
        ratio('drain_ratio', 'no-op tasks drained', slow, fast),
        # A busy machine does not change the amount of work
        ratio('drain_cpu_ratio', 'the same by processor time', effort['bare']['all'], effort['tracked']['all']),
        Figure('drain_tracked_per_s', 'tracked', 'tasks/s', slow),
        Figure('drain_bare_per_s', 'bare', 'tasks/s', fast),
        *(
            Figure(f'drain_{kind}_cpu_{part}_ms', f'{kind}, processor time: {label}', 'ms/task', effort[kind][part])
            for kind in ('tracked', 'bare')
            for part, label in (
                ('main', "worker's main process"), ('pool', 'its pool'), ('postgresql', 'PostgreSQL'),
                ('redis', 'Redis'),
            )
            if (kind, part) != ('bare', 'postgresql')
        ),
        Figure('first_run_s', "from a worker's start to its first run", 's', first_runs),
    ]


#
# Calls
#

def delay(stage):
    """
    Call `delay()` outside of a transaction, in warm processes.
    """
    number = 300 if stage.quick else 500
    with stage.probe('bare') as bare_probe, stage.probe('tracked') as tracked_probe:
        for probe in (bare_probe, tracked_probe):
            probe.do('delay', number=100)
        slow, fast = in_turns(
            7 if stage.quick else 15,
            lambda: number / tracked_probe.do('delay', number=number),
            lambda: number / bare_probe.do('delay', number=number),
        )
    return [
        ratio('delay_ratio', 'delay()', slow, fast),
        Figure('delay_tracked_per_s', 'tracked', 'calls/s', slow),
        Figure('delay_bare_per_s', 'bare', 'calls/s', fast),
    ]


def enqueue_many(stage):
    """
    Enqueue many runs together, against as many calls of `apply_async` as take about as long.
    """
    many, single = (5000, 500) if stage.quick else (10_000, 1000)
    with stage.probe('bare') as bare_probe, stage.probe('tracked') as tracked_probe:
        bare_probe.do('apply_async', number=100)
        tracked_probe.do('enqueue_many', number=100)

        def tracked():
            before = stage.queued('tracked')
            took = tracked_probe.do('enqueue_many', number=many)
            if stage.queued('tracked') - before != many:
                raise RuntimeError('Not all messages are in Redis')
            return many / took

        fast, slow = in_turns(
            5 if stage.quick else 9,
            tracked,
            lambda: single / bare_probe.do('apply_async', number=single),
        )
    return [
        ratio('enqueue_many_ratio', 'enqueue_many() against apply_async()', fast, slow),
        Figure('enqueue_many_rows_per_s', 'tracked, enqueue_many()', 'rows/s', fast),
        Figure('apply_async_bare_per_s', 'bare, apply_async()', 'calls/s', slow),
    ]


#
# Logs
#

def log(stage):
    """
    Write a long log from one task, and the same lines by `COPY` in batches of 500.
    """
    lines = 20_000 if stage.quick else 40_000
    waited = []
    prepare_raw_table(stage)
    rows = raw_rows(lines)

    with stage.probe('tracked') as probe, stage.worker('tracked') as worker:

        def tracked():
            pk = probe.do('enqueue', name='bench:log_burst', lines=lines)
            last = f'ams-leaf-01: interface xe-0/0/{lines - 1} has no description'
            seen = stage.wait(lambda: last_line(stage, pk) == last and time.time(), worker, interval=0.005)
            result = end_of(stage, pk, worker)
            waited.append(result['took'] / lines * 1e6)
            count, = stage.query('SELECT count(*) FROM netbox_celery_celerylogentry WHERE result_id = %s', pk)
            if count != lines:
                raise RuntimeError(f'{count} of {lines} lines are there')
            return lines / (seen - result['began'])

        def raw():
            started = time.perf_counter()
            copy_raw(stage, rows)
            return lines / (time.perf_counter() - started)

        tracked()  # opens the worker's connections
        waited.clear()
        slow, fast = in_turns(5 if stage.quick else 9, tracked, raw)

        def steadily(bursts, burst, pause):
            pk = probe.do('enqueue', name='bench:log_steadily', bursts=bursts, lines=burst, pause=pause)
            return end_of(stage, pk, worker)['took'] / (bursts * burst) * 1e6

        steady = [steadily(20, 100, 0.05) for __ in range(3 if stage.quick else 5)]
        single = [steadily(100, 1, 0.01) for __ in range(3 if stage.quick else 5)]
    return [
        ratio('log_ratio', 'lines of a log until others see them, against COPY', slow, fast),
        Figure('log_caller_us', 'a caller waits, a log as fast as it goes', 'us/line', waited),
        Figure('log_caller_steady_us', 'a caller waits, 2,000 lines a second', 'us/line', steady),
        Figure('log_caller_single_us', 'a caller waits, 100 single lines a second', 'us/line', single),
        Figure('log_tracked_per_s', 'tracked', 'lines/s', slow),
        Figure('log_copy_per_s', 'COPY', 'lines/s', fast),
    ]


def end_of(stage, pk, worker):
    """
    Wait for the end of a run and return its result.
    """
    status, result, error = stage.wait(lambda: stage.query(
        'SELECT status, result, error FROM netbox_celery_celeryresult WHERE id = %s AND completed IS NOT NULL', pk
    ), worker, interval=0.05)
    if status != 'completed':
        raise RuntimeError(f'The run is {status}: {error}')
    return result


def last_line(stage, pk):
    row = stage.query(
        'SELECT message FROM netbox_celery_celerylogentry WHERE result_id = %s ORDER BY id DESC LIMIT 1', pk
    )
    return row and row[0]


def prepare_raw_table(stage):
    """
    Make a table of the same shape, with the same indexes and the same foreign key.
    """
    stage.database.execute('DROP TABLE IF EXISTS bench_log')
    stage.database.execute('CREATE TABLE bench_log (LIKE netbox_celery_celerylogentry INCLUDING ALL)')
    stage.database.execute('CREATE TABLE IF NOT EXISTS bench_result (id bigint PRIMARY KEY)')
    stage.database.execute('INSERT INTO bench_result VALUES (1) ON CONFLICT DO NOTHING')
    stage.database.execute(
        'ALTER TABLE bench_log ADD FOREIGN KEY (result_id) REFERENCES bench_result ON DELETE CASCADE'
    )


def raw_rows(lines):
    now = datetime.now(UTC)
    return [
        (1, 1, 20, 'main', f'ams-leaf-01: interface xe-0/0/{number} has no description', None, None, now)
        for number in range(lines)
    ]


def copy_raw(stage, rows, batch=500):
    with stage.database.cursor() as cursor:
        for start in range(0, len(rows), batch):
            with cursor.copy(
                'COPY bench_log (result_id, attempt, level, grouping, message, object_type_id, object_id, created) '
                'FROM STDIN'
            ) as copy:
                for row in rows[start:start + batch]:
                    copy.write_row(row)


def visible(stage):
    """
    Look from another connection, 500 times per second, for lines that contain the time of their writing.
    """
    pauses = [random.uniform(0.02, 0.6) for __ in range(12 if stage.quick else 40)]
    with stage.probe('tracked') as probe, stage.worker('tracked') as worker:
        pk = probe.do('enqueue', name='bench:log_times', pauses=[0.1])
        end_of(stage, pk, worker)
        pk, after, delays = probe.do('enqueue', name='bench:log_times', pauses=pauses), 0, []

        def look():
            nonlocal after
            rows = stage.database.execute(
                'SELECT id, message FROM netbox_celery_celerylogentry WHERE result_id = %s AND id > %s ORDER BY id',
                (pk, after),
            ).fetchall()
            now = time.time()
            for after, message in rows:
                delays.append(now - float(message))
            return len(delays) == len(pauses)
        stage.wait(look, worker, interval=0.002)
    worst = Figure('log_visible_s', 'until others see a line, the worst', 's', [max(delays)])
    return [worst, Figure('log_visible_delays_s', f'all of {len(delays)}', 's', delays)]


#
# Long histories
#

INSERT_RESULTS = """
    INSERT INTO netbox_celery_celeryresult (
        created, last_updated, custom_field_data, task_id, celery_name, name, args, kwargs, options, queue, user_id,
        status, reason, value, value_max, step, worker, attempt, attempts, sent, started, completed, result, error,
        traceback, request_id, root_id, claims, nesting, in_backend
    )
    SELECT moment, moment, '{}', task_id, 'my_plugin:task_' || n %% 50, 'my_plugin:task_' || n %% 50, '[]',
        jsonb_build_object('device', n, 'commands', jsonb_build_array('show version', 'show interfaces')), '{}',
        'celery', %(user)s, status, '', 100, 100, 'Done', 'celery@worker-' || n %% 4, 1,
        jsonb_build_array(jsonb_build_object(
            'number', 1, 'started', moment, 'ended', moment, 'worker', 'celery@worker-' || n %% 4, 'error', ''
        )),
        moment, moment, moment + interval '3 seconds', jsonb_build_object('output', repeat('x', 300)),
        CASE status WHEN 'completed' THEN '' ELSE 'ConnectionError: the device does not answer' END,
        CASE status WHEN 'errored' THEN repeat('  File "tasks.py", line 12, in task' || chr(10), 20) ELSE '' END,
        task_id, task_id, 1, 0, false
    FROM (
        SELECT n, gen_random_uuid() AS task_id, now() - (%(number)s - n) * interval '10 seconds' AS moment,
            CASE n %% 20 WHEN 1 THEN 'errored' WHEN 2 THEN 'failed' WHEN 3 THEN 'revoked' ELSE 'completed' END AS status
        FROM generate_series(1, %(number)s) AS n
    ) AS run
"""
# Half of the lines belong to the latest run, the others are spread over all runs
INSERT_LINES = """
    INSERT INTO netbox_celery_celerylogentry (result_id, attempt, level, grouping, message, created)
    SELECT CASE n %% 2 WHEN 0 THEN %(last)s ELSE %(first)s + n %% %(number)s END, 1, 10 + 10 * (n %% 4), 'main',
        'ams-leaf-01: interface xe-0/0/' || n || ' has no description', now()
    FROM generate_series(1, %(number)s) AS n
"""
POLLED = 50
# Reported, but not part of the worst page: their work grows with the number of hits
BESIDE = ('log_page', 'list_by_status', 'list_by_task', 'list_search')


def history(stage):
    """
    Request the same pages with a short and with a long history.
    """
    sizes = {'netbox': 1000, 'bench_history': 100_000 if stage.quick else 1_000_000}
    long = stage.services.another_instance('bench_history', redis_databases=(3, 4))
    with stage.probe('history') as small, stage.probe('history', long) as large:
        pages = []
        for probe, database in zip((small, large), sizes):
            probe.do('get', url='/', number=1)
            pages.append(fill_history(stage, database, sizes[database]))
            for url in pages[-1].values():
                probe.do('get', url=url, number=2)
        figures = []
        for page in pages[0]:
            slow, fast = in_turns(
                5 if stage.quick else 11,
                lambda: min(large.do('get', url=pages[1][page], number=2)),
                lambda: min(small.do('get', url=pages[0][page], number=2)),
            )
            label = page.replace('_', ' ')
            figures += [
                ratio(f'history_{page}_ratio', label, slow, fast),
                Figure(f'history_{page}_long_s', f'{label}, {sizes["bench_history"]:,}', 's', slow),
                Figure(f'history_{page}_short_s', f'{label}, {sizes["netbox"]:,}', 's', fast),
            ]
    worst = max(
        (figure for figure in figures if figure.unit == 'ratio' and not figure.key.startswith(
            tuple(f'history_{page}_' for page in BESIDE)
        )),
        key=lambda figure: figure.value
    )
    return [Figure('history_ratio', f'the worst page: {worst.label}', 'ratio', worst.samples), *figures]


def fill_history(stage, database, number):
    """
    Fill a database and return the URLs to request, by name.
    """
    with stage.services.cluster.connect(database) as connection:
        user, = connection.execute("SELECT id FROM users_user WHERE username = 'bench'").fetchone()
        connection.execute(INSERT_RESULTS, {'user': user, 'number': number})
        first, last = connection.execute('SELECT min(id), max(id) FROM netbox_celery_celeryresult').fetchone()
        connection.execute(INSERT_LINES, {'first': first, 'last': last, 'number': number})
        connection.execute('VACUUM (ANALYZE) netbox_celery_celeryresult')
        connection.execute('VACUUM (ANALYZE) netbox_celery_celerylogentry')
        after, = connection.execute(
            'SELECT id FROM netbox_celery_celerylogentry WHERE result_id = %s ORDER BY id DESC OFFSET %s LIMIT 1',
            (last, POLLED),
        ).fetchone()
    return {
        'list_page': '/plugins/celery/results/',
        'detail_page': f'/plugins/celery/results/{last}/',
        'log_poll': f'/plugins/celery/results/{last}/log/lines/?after={after}&state=completed:1:',
        'rest_list': '/api/plugins/celery/results/',
        'rest_log_poll': f'/api/plugins/celery/results/{last}/logs/?after={after}',
        'log_page': f'/plugins/celery/results/{last}/log/',
        'list_by_status': '/plugins/celery/results/?status=errored',
        'list_by_task': '/plugins/celery/results/?celery_name=my_plugin:task_7',
        'list_search': '/plugins/celery/results/?q=task_7',
    }


#
# Schedules
#

SCHEDULES = 10_000
INSERT_SCHEDULES = """
    INSERT INTO netbox_celery_celeryschedule (
        created, last_updated, custom_field_data, name, description, enabled, origin, present, kind, crontab, timezone,
        interval, task_id, owner_id, args, kwargs, queue, options, missed, missed_max, overlap, last_run, next_run
    )
    SELECT now(), now(), '{}', 'bench ' || n, '', true, 'user', true, 'crontab', n %% 60 || ' 3 * * *', 'UTC',
        NULL, %(task)s, %(user)s, '[]', '{}', '', '{}', 'run_once', 10, 'allow', now(), now() + interval '6 hours'
    FROM generate_series(1, %(number)s) AS n
"""


def make_user(stage):
    """
    Return the primary key of the user as which the probe of the history logs in.
    """
    with stage.probe('history') as probe:
        return probe.do('user')


def beat(stage):
    """
    Let beat wait with many schedules that are not due, then make some of them due at the same time.
    """
    watch, due = (65, 1000) if stage.quick else (185, 5000)
    task, = stage.query(
        'INSERT INTO netbox_celery_celerytask (created, last_updated, custom_field_data, name, plugin, description,'
        " documentation, enabled, defaults, parameters, present) VALUES (now(), now(), '{}', 'bench:noop', 'bench', '',"
        " '', true, '{}', '[]', true) ON CONFLICT (name) DO UPDATE SET present = true RETURNING id"
    )
    stage.database.execute(INSERT_SCHEDULES, {'task': task, 'user': make_user(stage), 'number': SCHEDULES})
    stage.database.execute('VACUUM (ANALYZE) netbox_celery_celeryschedule')
    with stage.beat() as process:
        # Until the work at its start is done
        time.sleep(10)
        before, started = stage.cpu_time(process), time.monotonic()
        time.sleep(watch)
        elapsed = time.monotonic() - started
        used = {part: value - before[part] for part, value in stage.cpu_time(process).items()}

        stage.database.execute(
            'UPDATE netbox_celery_celeryschedule SET next_run = now() WHERE id IN'
            " (SELECT id FROM netbox_celery_celeryschedule WHERE name LIKE 'bench %%' LIMIT %s)", (due,)
        )
        stage.wait(lambda: stage.query(
            'SELECT count(*) FROM netbox_celery_celeryresult WHERE schedule_id IS NOT NULL'
        )[0] == due, process)
        began, ended = stage.query(
            'SELECT min(extract(epoch FROM created)), max(extract(epoch FROM created))'
            ' FROM netbox_celery_celeryresult WHERE schedule_id IS NOT NULL'
        )
    stage.database.execute('TRUNCATE netbox_celery_celeryschedule CASCADE')
    return [
        Figure('beat_idle_core_share', f'of a core, with {SCHEDULES:,} schedules, none of them due', 'ratio', [
            used['main'] / elapsed
        ]),
        Figure('beat_idle_postgresql_core_share', 'the same, PostgreSQL', 'ratio', [used['postgresql'] / elapsed]),
        Figure('beat_sends_per_s', f'runs sent, {due:,} that are due at the same time', 'runs/s', [
            (due - 1) / float(ended - began)
        ]),
    ]


#
# Retention
#

INSERT_OLD_LINES = """
    INSERT INTO netbox_celery_celerylogentry (result_id, attempt, level, grouping, message, created)
    SELECT CASE n %% 2 WHEN 0 THEN %(middle)s ELSE %(first)s + n %% %(runs)s END, 1, 10 + 10 * (n %% 4), 'main',
        'ams-leaf-01: interface xe-0/0/' || n || ' has no description', now()
    FROM generate_series(1, %(lines)s) AS n
"""


def prune(stage):
    """
    Delete all but the latest tenth of a long history. Half of the lines belong to one run.
    """
    runs, lines = (10_000, 500_000) if stage.quick else (100_000, 10_000_000)
    user = make_user(stage)
    with stage.probe('history') as probe:
        stage.database.execute(INSERT_RESULTS, {'user': user, 'number': runs})
        first, last = stage.query('SELECT min(id), max(id) FROM netbox_celery_celeryresult')
        stage.database.execute(
            "UPDATE netbox_celery_celeryresult SET completed = completed - interval '1 year' WHERE id < %s",
            (old := first + runs * 9 // 10,)
        )
        stage.database.execute(INSERT_OLD_LINES, {
            'first': first, 'middle': first + runs // 2, 'runs': runs, 'lines': lines
        })
        stage.database.execute('VACUUM (ANALYZE) netbox_celery_celeryresult, netbox_celery_celerylogentry')
        answer = probe.do('prune', days=300)
    if stage.query('SELECT min(id) FROM netbox_celery_celeryresult') != (old,) or answer['runs'] != old - first:
        raise RuntimeError('The deleted rows are not the old ones')
    return [
        Figure('prune_s', f"{answer['lines']:,} lines and {answer['runs']:,} runs deleted", 's', [answer['took']]),
        Figure('prune_lines_per_s', 'the same', 'lines/s', [answer['lines'] / answer['took']]),
        Figure('prune_longest_s', 'the longest of its transactions', 's', [answer['longest']]),
    ]


MEASURES = {
    'drain': drain,
    'delay': delay,
    'enqueue_many': enqueue_many,
    'log': log,
    'visible': visible,
    'history': history,
    'beat': beat,
    'prune': prune,
}
