"""Invalid parameters are refused immediately, and never break the run, or the request, later."""
from datetime import UTC, datetime, timedelta
from io import BytesIO

import pytest
from rest_framework.parsers import JSONParser

from netbox_celery.api.parameters import MAX_ID, MAX_SECONDS, LogQuerySerializer, TaskRunSerializer
from netbox_celery.reading.log import DEFAULT_LIMIT, MAX_LIMIT, LogFilter

DURATIONS = ('countdown', 'expires', 'time_limit', 'soft_time_limit')


def errors_of(**data):
    serializer = TaskRunSerializer(data=data)
    serializer.is_valid()
    return serializer.errors


@pytest.mark.parametrize('name', DURATIONS)
@pytest.mark.parametrize('text', [
    '1e400', '-1e400', '1e18', '1' + 400 * '0', str(MAX_SECONDS + 1), '"nan"', '"inf"', '"-Infinity"',
])
def test_seconds_that_are_not_a_time(name, text):
    data = JSONParser().parse(BytesIO(f'{{"{name}": {text}}}'.encode()))
    assert set(errors_of(**data)) == {name}


@pytest.mark.parametrize('name', DURATIONS)
@pytest.mark.parametrize('value', [1, 1.5, 60, MAX_SECONDS])
def test_seconds(name, value):
    serializer = TaskRunSerializer(data={name: value})
    assert serializer.is_valid(), serializer.errors
    assert serializer.validated_options() == {name: value}
    # It can be reckoned with
    assert datetime.now(UTC) + timedelta(seconds=value)


@pytest.mark.parametrize('given, expected', [
    ({'name': 'Greet'}, {'netbox_name': 'Greet'}),
    ({'countdown': 0}, {'countdown': 0}),
    ({'eta': '2040-01-01T00:00:00Z'}, {'schedule_at': datetime(2040, 1, 1, tzinfo=UTC)}),
    ({'schedule_at': '2040-01-01T00:00:00Z'}, {'schedule_at': datetime(2040, 1, 1, tzinfo=UTC)}),
    ({'expires': '2040-01-01T00:00:00Z'}, {'expires': datetime(2040, 1, 1, tzinfo=UTC)}),
    ({'args': [None, {}], 'kwargs': {'a': None}}, {}),
])
def test_options(given, expected):
    """Each has its name in `CeleryResult.enqueue`; arguments are not options."""
    serializer = TaskRunSerializer(data=given)
    assert serializer.is_valid(), serializer.errors
    assert serializer.validated_options() == expected


@pytest.mark.parametrize('times', [('schedule_at', 'eta'), ('eta', 'countdown'), ('schedule_at', 'countdown')])
def test_one_start(times):
    values = {'schedule_at': '2040-01-01T00:00:00Z', 'eta': '2040-01-01T00:00:00Z', 'countdown': 5}
    assert set(errors_of(**{name: values[name] for name in times})) == {times[1]}


def test_misspelt_options_are_all_named():
    errors = errors_of(kwarg={}, que='x', name='right')
    assert set(errors) == {'kwarg', 'que'}
    assert all('Valid options are: args, kwargs' in text for (text,) in errors.values())


@pytest.mark.parametrize('given, expected', [
    ({}, {'after': 0, 'limit': DEFAULT_LIMIT, 'offset': 0, 'wanted': LogFilter()}),
    ({'limit': 0}, {'limit': MAX_LIMIT}),
    ({'limit': MAX_LIMIT + 1}, {'limit': MAX_LIMIT}),
    ({'limit': 10 ** 30}, {'limit': MAX_LIMIT}),
    ({'after': MAX_ID, 'offset': MAX_ID}, {'after': MAX_ID, 'offset': MAX_ID}),
    ({'level': [20, 30], 'level__gte': 0, 'grouping': ['a', 'b'], 'q': '%'},
     {'wanted': LogFilter(levels=(20, 30), min_level=0, groupings=('a', 'b'), search='%')}),
])
def test_pages_of_a_log(given, expected):
    serializer = LogQuerySerializer(data=given)
    assert serializer.is_valid(), serializer.errors
    page = serializer.page()
    assert {name: page[name] for name in expected} == expected


@pytest.mark.parametrize('given', [
    {'after': -1}, {'after': MAX_ID + 1}, {'offset': MAX_ID + 1}, {'limit': -1}, {'level': ['high']},
    {'level__gte': 'high'}, {'after': 'nan'},
])
def test_wrong_pages(given):
    assert not LogQuerySerializer(data=given).is_valid()
