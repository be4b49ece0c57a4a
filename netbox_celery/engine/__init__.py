"""From a call to its recorded outcome. Nothing in here knows of views, tables, forms or REST.

A run goes through the rooms in this order:

1. `calls`: code calls a task: options, arguments, queue, policies. `catalogue` knows which tasks there are.
2. `sending`: the call is described once, is admitted, and becomes a row and a message, in this order: what was called
   is never lost, since the row is there before the message, and says what to send again.
3. `runs`: a worker claims the row, and runs the body. A claim is a fencing token: of all messages and their copies one
   runs, and only the claim's holder can end the run. Meanwhile the log and the progress are written. `runs.ending` has
   a table of all ways in which a run ends.
4. `results`: Celery tells its result backend how the task ended. The backend's layers write the end into the row before
   anybody else hears of it, and close what depends on a run that failed.
5. `workflows`: the signatures that a call brings along, and the runs that have a root in common.
6. `worker`: what a worker does beside running tasks: its set-up, its heartbeat, the sweep for what dead workers left.
7. `schedules`: what beat does: which schedules are due, and their runs. And the rows of the catalogue.

All of them stand on `store`, which alone speaks to PostgreSQL about runs. A room imports from rooms below it, and never
from one above: `[tool.importlinter]` in `pyproject.toml` has their order.

Where the guarantees stand (search for `GUARANTEE`; `docs/guarantees.md` has them all, with their tests):

* A run is not lost: `sending.enqueue`, `store.lifecycle`, `worker.sweep`, `worker.missing`.
* It does not run twice, and ends once: `store.lifecycle` (claim and finish), `runs.claim`.
* It does not stay "running": `worker.presence`, `worker.sweep`, `runs.ending`.
* No more than the limit run under a key: `sending.admission`.
* What is cancelled does not run: `store.lifecycle`, `workflows.family`.
* What depends on a failed run is closed: `results.upstream`, `results.chords`.
* What is due is run once: `schedules.firing`, `schedules.leader`.
"""
