import pytest


@pytest.fixture
def run():
    """A run that this process has claimed."""
    from netbox_celery.engine.calls.run import Run
    from netbox_celery.engine.store.recorder import recorder
    from tests.factories import make_result

    row = make_result('running', claims=1, attempt=1, attempts=[{'number': 1}])
    yield Run(str(row.task_id), id=row.pk, claims=1)
    recorder.flush()
