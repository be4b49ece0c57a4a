"""Requests of runs from their rows: what depends on a run, as Celery wants to be told."""
from ..calls.exact import options_of
from ..store import lifecycle
from ..store.database import get_connection
from .canvas import as_request

__all__ = (
    'load_requests',
)

DEPENDENTS = f"""
    SELECT task_id::text, celery_name, options::text, exact_call FROM {lifecycle.TABLE}
    WHERE task_id = ANY(%s::uuid[]) AND options ?| array['chain', 'chord', 'link_error']
"""


def load_requests(task_ids):
    """Return the requests of those of some runs on whose end something depends, by ID."""
    return {
        task_id: as_request(task_id, name, options_of(exact_call, options))
        for task_id, name, options, exact_call in get_connection().execute(DEPENDENTS, ([str(id) for id in task_ids],))
    }
