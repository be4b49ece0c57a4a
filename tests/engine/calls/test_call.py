"""A call cannot be changed; what Celery may change is a dict of its own."""
import pytest

from netbox_celery.engine.calls.call import Call

OPTIONS = {'task_id': 'x', 'queue': 'q', 'producer': object(), 'result_cls': object(), 'headers': {'mine': 1}}


@pytest.fixture
def call():
    return Call(None, 'tests:x', (1,), {'a': 1}, dict(OPTIONS))


def test_frozen(call):
    """No field can be set, and none can be added."""
    for name in Call._fields:
        with pytest.raises(AttributeError):
            setattr(call, name, None)
    with pytest.raises(AttributeError):
        call.id = 1


@pytest.mark.parametrize('header, expected', [
    (None, {'mine': 1}), (True, {'mine': 1, 'netbox_celery': True}), (False, {'mine': 1, 'netbox_celery': False}),
    ({'begun': 1}, {'mine': 1, 'netbox_celery': {'begun': 1}}),
])
def test_options_of_the_message(call, header, expected):
    """A new dict each time; of a message that goes out later, without what means something only during the call."""
    options = call.message_options(header)
    assert options == {**OPTIONS, 'headers': expected}
    assert options is not call.options and call.options == OPTIONS
    deferred = call.message_options(header, is_deferred=True)
    assert deferred == {'task_id': 'x', 'queue': 'q', 'headers': expected}
    for taken in (options, deferred):
        taken.clear()
    assert call.options == OPTIONS


@pytest.mark.parametrize('headers, expected', [(None, None), ({}, None), ({'netbox_celery': True}, True)])
def test_header(headers, expected):
    assert Call(None, 'tests:x', None, None, {'headers': headers}).header == expected
