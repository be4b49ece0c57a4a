"""
The same with pytest and pytest-django: `pytest --pyargs netbox_example_plugin`.
"""

import pytest

from netbox_example_plugin.tasks import DeviceUnreachable, flaky


@pytest.mark.django_db
def test_it_never_answers(run_task):
    run = run_task(flaky, succeed_on=9)
    assert run.status == 'errored'
    assert run.row.attempt == 6
    with pytest.raises(DeviceUnreachable):
        run.raise_for_error()
