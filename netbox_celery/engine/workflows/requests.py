"""Builds requests from rows: what depends on a run, in the form that Celery expects."""
from ..store import lifecycle
from ..store.database import get_connection
from ..store.payload import options_of
from .canvas import as_request

__all__ = (
    'load_requests',
)

DEPENDENTS = f"""
    SELECT task_id::text, celery_name, options::text, exact_call FROM {lifecycle.TABLE}
    WHERE task_id = ANY(%s::uuid[]) AND options ?| array['chain', 'chord', 'link_error']
"""


def load_requests(task_ids):
    """Return the requests of runs by ID, without those of runs on which nothing depends."""
    return {
        task_id: as_request(task_id, name, options_of(exact_call, options))
        for task_id, name, options, exact_call in get_connection().execute(DEPENDENTS, ([str(id) for id in task_ids],))
    }
