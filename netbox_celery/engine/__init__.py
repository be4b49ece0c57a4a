"""The engine: from the call of a task to the recorded end of its run. It knows nothing of views, tables, forms or REST.

PostgreSQL is the source of truth, and the broker is only transport. Every run is a row, and every change of its status
is one guarded `UPDATE`. A message may arrive twice, late or never: that costs time, but it does not lose a run, and it
does not repeat work that the row records as done.

The rooms tell the story of a run in this order:

1. `calls`: **a task is called**, with `delay()`, from a form or REST, or by a schedule. Every call has the same parts:
   the task's name, arguments, options, a queue, and policies such as a concurrency key or an ignore window. `catalogue`
   knows which tasks exist, and which arguments and queues people may give them.
2. `sending`: **the call is described once, and becomes a row, and then a message.** Admission decides whether the call
   gets a run that starts now, waits in line for a slot, joins an active run, or is ignored or refused. The row is
   written before the message is sent, and holds everything that is needed to send it again. So an accepted call cannot
   get lost.
3. `runs`: **a worker claims the row, and runs the body.** A claim is a fencing token: of all messages of an attempt and
   all their copies, one gets it, and only its holder can finish the run. While the body runs, its log and its progress
   are written on a separate connection, so they are visible before the task's own transaction is committed.
4. `results`: **the body returns or raises, and the run finishes.** Celery reports every end to its result backend
   first. Our layers over that backend write the end into the row before it becomes visible anywhere else. If the run
   did not succeed, they also close the steps that depend on it.
5. `workflows`: **the next step starts.** The message of a run carries the signatures of the steps after it. This room
   reads and writes these signatures, and finds the runs that have a root in common.
6. `worker`: **something dies, and the run still comes to an end.** Workers send heartbeats. A sweep finds the runs of
   lost workers and the messages that got lost: it requeues the runs that may be repeated, and finishes the others.
7. `schedules`: **time passes, and a schedule is due.** Beat calls its task, once for each due time: back to 1.

All rooms stand on `store`, the only one that changes the status of a run. There, `lifecycle` is the state machine of
runs: read it first. `app`, `exceptions`, `identity` and `internals` (private names of Celery and Kombu) are below that.

A room imports only from rooms below it. From top to bottom: `worker`, `schedules`, `results`, `runs`, `sending`,
`workflows`, `catalogue`, `calls`, the models, `store`. `[tool.importlinter]` in `pyproject.toml` enforces that.

Where each guarantee is kept (search for `GUARANTEE`; `docs/guarantees.md` lists them with the tests that attack them):

* A run is not lost: `sending.enqueue`, `store.lifecycle`, `worker.sweep`, `worker.missing`.
* A run does not run twice, and finishes once: `store.lifecycle` (claim and finish), `runs.claim`.
* A run does not stay "running": `worker.presence`, `worker.sweep`, `runs.ending`.
* No more runs than the limit are active under a concurrency key: `sending.admission`.
* A cancelled run does not start: `store.lifecycle`, `workflows.family`.
* A task that replaces itself keeps its row: `sending.replace`, `store.lifecycle`.
* What depends on a failed run is closed: `results.closing`, `results.upstream`, `results.chords`.
* What is due runs once: `schedules.firing`, `schedules.leader`.
* What was called in a branch does not run in main: `store.branches`, `catalogue.strategies`.
"""
