"""Everything is killed at random while tasks run, and in the end rows and side effects agree.

Three workers run a mix of tasks. Their processes, and they themselves, are killed again and again; PostgreSQL and the
broker crash once each in the middle. What bodies really did stands in a journal that no server keeps, and is compared
with what the rows say.

    make chaos                    the full size, with each broker
    make chaos N=500 SEED=7       another size; what is random, once more
"""
import os
import random
import signal
import threading
import time
from collections import Counter, defaultdict
from types import SimpleNamespace

import pytest
from celery import chain
from django.db import DatabaseError, connection, transaction
from netbox_test_plugin.side import folder
from netbox_test_plugin.tasks import chaos

from development.stack.redis import RedisServer
from netbox_celery.models import CeleryLogEntry, CeleryResult

from .support import speaking_to, until
from .test_canvas import ENDS
from .test_outages import processes_in

FULL = 'NETBOX_CHAOS' in os.environ
N = int(os.environ.get('NETBOX_CHAOS') or 150)
SEED = int(os.environ.get('NETBOX_CHAOS_SEED') or random.randrange(1_000_000))
#: What happens, in tasks for each time.
TASKS_PER_PROCESS_KILLED = 20
TASKS_PER_WORKER_KILLED = 60
WORKERS = 3
CONFIG = {
    # The machine may be slow: no living worker is to be declared lost
    'heartbeat_interval': 1, 'worker_lost_after': 10, 'sweep_interval': 1,
}


@pytest.fixture(params=['redis', 'forgetful redis', 'rabbitmq'] if FULL else ['redis'])
def broker(request, services):
    """A broker: `url()`, `crash()`, `restart()`."""
    log = services.directory / 'log' / 'chaos-broker.log'
    if request.param == 'rabbitmq':
        server = request.getfixturevalue('rabbitmq')
        yield SimpleNamespace(
            name=request.param, url=server.url(), crash=server.crash,
            restart=lambda: server.start(log, port=server.port, die_with_parent=True),
        )
        return
    server = RedisServer(services.directory / 'chaos-redis', 'secret', durable=request.param == 'redis')
    server.start(log, die_with_parent=True)
    yield SimpleNamespace(
        name=request.param, url=server.url(), crash=lambda: server.process.kill(),
        restart=lambda: server.start(log, port=server.port, die_with_parent=True),
    )
    server.stop()


@pytest.fixture
def durable_commits(services):
    """Commits survive a crash, as in production."""
    with services.cluster.connect() as admin:
        admin.execute('ALTER DATABASE netbox SET synchronous_commit = on')
        admin.execute('CHECKPOINT')
    connection.close()
    yield
    with services.cluster.connect() as admin:
        admin.execute('ALTER DATABASE netbox RESET synchronous_commit')
    connection.close()


class Chaos:
    """Kills processes and servers, and counts that."""

    def __init__(self, services, server, workers, dice):
        self.services = services
        self.server = server
        self.workers = workers
        self.dice = dice
        self.counts = Counter()

    def plan(self):
        """Return what is killed after how many starts, in order: pairs."""
        plan = [('postgresql', N * 2 // 5), ('broker', N * 3 // 5)]
        for what, each in (('process', TASKS_PER_PROCESS_KILLED), ('worker', TASKS_PER_WORKER_KILLED)):
            plan += [(what, self.dice.randrange(N // 20, N)) for __ in range(N // each)]
        return sorted(plan, key=lambda event: event[1])

    def happen(self, what):
        getattr(self, what)()
        self.counts[f'{what} killed'] += 1

    def process(self):
        """Kill a process of a worker."""
        worker = self.dice.choice(self.workers)
        # Celery ends a worker that loses a process before it is ready
        until(lambda: self.look_after_workers() or worker.is_ready, 90)
        if children := worker.children:
            pid = self.dice.choice(children)
            chaos.journal('kill', processes=[chaos.process(pid)])
            os.kill(pid, signal.SIGKILL)

    def worker(self):
        """Kill a worker, whose processes die with it, and restart it."""
        worker = self.dice.choice(self.workers)
        worker.signal(signal.SIGSTOP)  # it makes no further process
        children = worker.children
        chaos.journal('kill', processes=[chaos.process(pid) for pid in (worker.pid, *children)])
        worker.kill()
        until(lambda: not any(os.path.exists(f'/proc/{pid}/exe') for pid in children))
        worker.start()

    def postgresql(self):
        cluster, port = self.services.cluster, self.services.cluster.port
        os.kill(cluster.process.pid, signal.SIGKILL)
        until(lambda: not cluster.process.running and not processes_in(cluster.directory))
        time.sleep(self.dice.uniform(0.5, 3))
        cluster.start(self.services.directory / 'log' / 'postgres.log', port=port, die_with_parent=True)
        assert cluster.port == port

    def broker(self):
        self.server.crash()
        time.sleep(self.dice.uniform(0.5, 3))
        self.server.restart()

    def look_after_workers(self):
        """Restart workers that stopped by themselves, and count them: there should be none."""
        for worker in self.workers:
            if worker.process.poll() is not None:
                self.counts['worker ended by itself'] += 1
                print(worker.name, worker.process.returncode, worker.output[-1500:])
                worker.start()


def send(dice, queue):
    """Send the tasks, in transactions of ten, whatever is down; returns counts."""
    counts, left = Counter(), [(number, dice.uniform(0.1, 0.7)) for number in range(N)]
    while left:
        batch = left[:10]
        try:
            with transaction.atomic():
                for number, seconds in batch:
                    if number % 10 == 9:
                        chain(chaos.step.si(seconds).set(queue=queue) for __ in range(3)).apply_async()
                        continue
                    task = (chaos.early, chaos.early, chaos.early, chaos.late, chaos.late, chaos.rejecting,
                            chaos.rejecting, chaos.retrying, chaos.logging)[number % 10]
                    task.apply_async((seconds,), queue=queue)
        except DatabaseError:
            counts['transaction failed'] += 1
            connection.close()
            time.sleep(0.2)
            continue
        counts['transaction'] += 1
        del left[:10]
        # Not all of it is there before anything happens
        while len([1 for entry in chaos.read_journal() if entry['what'] == 'start']) < N - len(left) - 60:
            time.sleep(0.2)
    connection.close()
    return counts


class Account:
    """Compares the journal with the rows."""

    def __init__(self, rows, entries):
        self.rows = rows
        self.entries = entries
        self.wrong = []
        self.counts = Counter()
        #: By run and claim: the end of the body, the place of its start among the entries, and its process.
        self.ends, self.started, self.processes = {}, {}, {}
        #: Where each process was killed, and the last entry that it made.
        self.killed, self.last = {}, {}

    def settle(self):
        self.read()
        for run, row in self.rows.items():
            self.check(run, row, sorted(claims for its_run, claims in self.started if its_run == run))
        return self

    def complain(self, run, what):
        row = self.rows.get(run)
        self.wrong.append((what, run, row and (row.celery_name, row.status, row.reason, row.error, row.claims)))

    def read(self):
        """Follow the journal: nothing runs twice, neither at the same time nor for the same claim."""
        open_by_run = {}
        for place, entry in enumerate(self.entries):
            if entry['what'] == 'kill':
                self.killed.update((process, place) for process in entry['processes'])
                continue
            run, process = entry['run'], entry['process']
            key = run, entry['claims']
            self.last[process] = place
            if run not in self.rows:
                self.complain(run, 'has no row')
            if entry['what'] == 'start':
                self.counts['executions'] += 1
                if key in self.started:
                    self.complain(run, f'claim {key[1]} is executed twice')
                before = open_by_run.get(run)
                if before is not None and self.processes[before] not in self.killed:
                    self.complain(run, f'claim {key[1]} begins while {before[1]} goes on')
                self.started[key], self.processes[key], open_by_run[run] = place, process, key
            else:
                if open_by_run.pop(run, None) != key:
                    self.complain(run, f'claim {key[1]} ends, which has been given to another')
                self.ends[key] = place, entry['what']

    def was_killed_at_its_end(self, key):
        """Whether a process was killed after the body, before its row was written."""
        process = self.processes[key]
        return process in self.killed and self.last[process] == self.ends[key][0]

    def check(self, run, row, claims):
        self.counts[f'{row.status} {row.reason}'.strip()] += 1
        self.counts['executed again'] += len(claims) > 1
        last = (run, row.claims) if (run, row.claims) in self.started else None
        for key in ((run, number) for number in claims):
            if key not in self.ends:
                if self.processes[key] not in self.killed:
                    self.complain(run, f'claim {key[1]} began, was not killed, and did not end')
            elif self.ends[key][1] == 'end' and not (row.status == 'completed' and key == last):
                # The body returned, and the row says otherwise: that takes a kill at that very moment
                if not self.was_killed_at_its_end(key):
                    self.complain(run, f'claim {key[1]} ended, and the row does not say so')
                self.counts['killed between the end of the body and its row'] += 1
        if row.status == 'completed':
            if last is None or self.ends.get(last, (0, ''))[1] != 'end':
                self.complain(run, 'is completed, and its body is not')
            elif row.result != f'{run} {row.claims} {self.processes[last]}':
                self.complain(run, f'has the result of another execution: {row.result}')
        elif (row.status, row.reason) == ('errored', 'worker_lost'):
            if last is not None and self.processes[last] not in self.killed:
                self.complain(run, 'is lost, and its process was not killed')
        elif (row.status, row.reason) == ('errored', 'upstream_failed'):
            if claims or not any(
                other.root_id == row.root_id and other.reason == 'worker_lost' for other in self.rows.values()
            ):
                self.complain(run, 'has been executed, or nothing before it failed')
        else:
            self.complain(run, 'has ended in a way that nothing here explains')
        if row.celery_name in (chaos.early.name, chaos.step.name) and len(claims) > 1:
            self.complain(run, 'is not to be repeated, and was')
        if row.celery_name == chaos.retrying.name and row.status == 'completed':
            if [attempt['number'] for attempt in row.attempts][-1] != 3:
                self.complain(run, f'has other attempts: {row.attempts}')

    def check_logs(self):
        """A completed run has all lines of the claim that completed it."""
        found = defaultdict(list)
        for run, message in CeleryLogEntry.objects.order_by('pk').values_list('result__task_id', 'message'):
            found[str(run)].append(message)
        for run, row in self.rows.items():
            if row.celery_name == chaos.logging.name and row.status == 'completed':
                expected = [f'{row.claims} {number}' for number in range(chaos.LINES)]
                own = [line for line in found[run] if line in expected]
                if sorted(set(own)) != sorted(expected):
                    self.complain(run, f'has lost lines of its log: {found[run]}')
                self.counts['lines written twice'] += len(own) - len(expected)


# A second try would hide what a first one has found
def test_chaos(services, make_instance, make_worker, without_shared_workers, broker, durable_commits, capsys):
    """Each run finishes, none runs twice at the same time, and side effects are exactly as the rows say."""
    (folder() / 'journal').unlink(missing_ok=True)
    began, dice = time.monotonic(), random.Random(SEED)
    instance = make_instance(
        f'chaos-{broker.name.split()[0]}', broker_url=broker.url, **CONFIG,
        # A retry or a next step is not given up while the broker may be down
        celery={'task_publish_retry_policy': {'max_retries': 100, 'interval_start': 0, 'interval_step': 0.1,
                                              'interval_max': 0.5}},
    )
    workers = [
        make_worker(f'{broker.name.split()[0]}-chaos-{number}', instance=instance, queue='chaos', concurrency=3)
        for number in range(WORKERS)
    ]
    monkey, sent = Chaos(services, broker, workers, dice), {}
    with speaking_to(broker.url, broker_transport_options=_transport_options(broker)):
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.ready()
        sender = threading.Thread(target=lambda: sent.update(send(random.Random(SEED), 'chaos')), daemon=True)
        sender.start()
        for what, threshold in monkey.plan():
            until(
                lambda: monkey.look_after_workers() or _executions() >= threshold, 300 + N,
                lambda: f'{_executions()} of {threshold} executions before {what}; {dict(monkey.counts)}',
            )
            monkey.happen(what)
        until(lambda: not sender.is_alive(), 300)
        unfinished = CeleryResult.objects.exclude(status__in=ENDS)
        try:
            until(lambda: monkey.look_after_workers() or not unfinished.exists(), 300)
        except AssertionError:
            pytest.fail(f'Seed {SEED}, {broker.name}: without an end: ' + '\n'.join(map(str, unfinished.values(
                'task_id', 'celery_name', 'status', 'reason', 'sent', 'claims', 'attempt', 'worker', 'scheduled'
            ))))
        time.sleep(2)  # for what would come after the end

    rows = {str(row.task_id): row for row in CeleryResult.objects.all()}
    account = Account(rows, chaos.read_journal()).settle()
    account.check_logs()
    with capsys.disabled():
        print(f'\n{N} tasks, {broker.name}, seed {SEED}: {len(rows)} runs in {time.monotonic() - began:.0f} s')
        for counts in (monkey.counts, sent, account.counts):
            print('   ', ', '.join(f'{what}: {number}' for what, number in sorted(counts.items())))
    assert not account.wrong, f'Seed {SEED}, {broker.name}: ' + '\n'.join(map(str, account.wrong))
    assert monkey.counts['worker ended by itself'] == 0


def _executions():
    return sum(entry['what'] == 'start' for entry in chaos.read_journal())


def _transport_options(broker):
    return {'confirm_publish': True} if broker.name == 'rabbitmq' else {'global_keyprefix': 'netbox_celery:'}
