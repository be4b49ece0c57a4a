"""Arguments that no message could hold, wherever they are entered: a 400, or an error at the field."""
import json

import pytest
from django.test import Client
from rest_framework.test import APIClient

from netbox_celery.models import CeleryResult, CelerySchedule
from tests.factories import make_schedule, make_task
from tests.support import nested_json
from users.models import User

pytestmark = pytest.mark.django_db(transaction=True)

#: Just too deep, what ends a worker, and what Python cannot read.
DEPTHS = [101, 750, 100_000]


@pytest.fixture
def user():
    return User.objects.create_superuser('root')


@pytest.fixture
def api(user):
    client = APIClient(raise_request_exception=False)
    client.force_login(user)

    def send(path, text, method='post'):
        return getattr(client, method)(f'/api/plugins/celery/{path}', text, content_type='application/json')
    return send


@pytest.fixture
def ui(user):
    client = Client(raise_request_exception=False)
    client.force_login(user)
    return client


@pytest.fixture
def task():
    return make_task(parameters=[
        {'name': 'x', 'kind': 'positional_or_keyword', 'annotation': '', 'required': False},
        {'name': 'rows', 'kind': 'positional_or_keyword', 'annotation': 'list', 'required': False},
        {'name': 'more', 'kind': 'var_keyword', 'annotation': '', 'required': False},
    ])


@pytest.mark.parametrize('depth', DEPTHS)
@pytest.mark.parametrize('field, body', [
    ('args', '{"args": [%s]}'), ('args', '{"args": %s}'), ('kwargs', '{"kwargs": {"x": %s}}'),
    ('kwargs', '{"kwargs": {"x": {"y": %s}}}'), ('tags', '{"tags": %s}'), ('queue', '{"queue": %s}'), ('', '%s'),
])
def test_run_by_rest(api, task, field, body, depth):
    """The field is named, unless the body cannot be read at all; nothing is called."""
    response = api(f'tasks/{task.pk}/run/', body % nested_json(depth))
    assert response.status_code == 400
    assert not field or field in response.json() or 'nested too deeply' in response.json()['detail']
    assert not CeleryResult.objects.exists()


@pytest.mark.parametrize('depth', DEPTHS)
@pytest.mark.parametrize('field, text', [('args', '%s'), ('kwargs', '{"x": %s}')])
def test_schedule_by_rest(api, task, field, text, depth):
    """Also if a schedule is changed, alone or in bulk."""
    schedule = make_schedule(task=task)
    payload = f'"{field}": {text % nested_json(depth)}'
    for path, body, method in (
        ('schedules/', f'{{"name": "s", "task": {task.pk}, "crontab": "* * * * *", {payload}}}', 'post'),
        (f'schedules/{schedule.pk}/', f'{{{payload}}}', 'patch'),
        ('schedules/', f'[{{"id": {schedule.pk}, {payload}}}]', 'patch'),
    ):
        response = api(path, body, method)
        assert response.status_code == 400
        assert 'nested too deeply' in response.content.decode()
    assert [(it.args, it.kwargs) for it in CelerySchedule.objects.all()] == [([], {})]


@pytest.mark.parametrize('depth', DEPTHS)
@pytest.mark.parametrize('entered', [
    {'parameter_x': '%s'}, {'parameter_rows': '%s'}, {'parameter_more': '{"a": %s}'},
    {'parameter_more': '{"a": {"b": %s}}'},
], ids=str)
def test_run_form(ui, task, entered, depth):
    data = {name: text % nested_json(depth) for name, text in entered.items()}
    response = ui.post(f'/plugins/celery/tasks/{task.pk}/run/', data)
    assert response.status_code == 200
    assert set(response.context['form'].errors) == set(entered)
    assert not CeleryResult.objects.exists()


@pytest.mark.parametrize('depth', DEPTHS)
@pytest.mark.parametrize('entered', [
    {'parameter_x': '%s'}, {'arguments_as': 'json', 'args': '%s'}, {'arguments_as': 'json', 'kwargs': '{"x": %s}'},
], ids=str)
def test_schedule_form(ui, task, entered, depth):
    """Neither saving nor rendering the form again, nor opening it with such a value, causes an error."""
    data = {name: text % nested_json(depth) if '%s' in text else text for name, text in entered.items()} | {
        'name': 's', 'task': task.pk, 'kind': 'crontab', 'crontab': '* * * * *', 'timezone': 'UTC',
        'missed': 'run_once', 'missed_max': 1, 'overlap': 'allow',
    }
    response = ui.post('/plugins/celery/schedules/add/', data)
    assert response.status_code == 200
    assert set(response.context['form'].errors) == {name for name, text in entered.items() if '%s' in text}
    assert not CelerySchedule.objects.exists()
    assert ui.post('/plugins/celery/schedules/add/', data, headers={'HX-Request': 'true'}).status_code == 200
    if depth < 1000:
        assert ui.get('/plugins/celery/schedules/add/', data).status_code == 200


@pytest.mark.parametrize('depth', [101, 750, 20_000])
@pytest.mark.parametrize('field, text', [('args', '%s'), ('kwargs', '{"x": %s}')])
def test_import(ui, task, field, text, depth):
    value = text % nested_json(depth)
    quoted = value.replace('"', '""')
    for data_format, data in (
        ('json', f'[{{"name": "s", "task": "{task.name}", "crontab": "* * * * *", "{field}": {value}}}]'),
        ('csv', f'name,task,crontab,{field}\ns,{task.name},* * * * *,"{quoted}"\n'),
        ('yaml', f'- name: s\n  task: {task.name}\n  crontab: "* * * * *"\n  {field}: {value}\n'),
    ):
        response = ui.post('/plugins/celery/schedules/import/', {
            'import_method': 'direct', 'data': data, 'format': data_format, 'csv_delimiter': ',',
        }, follow=True)
        assert response.status_code == 200
        assert 'nested too deeply' in response.content.decode()
    assert not CelerySchedule.objects.exists()


@pytest.mark.parametrize('number', ['1e23', '1e+16', '-0.0', '[1, {"a": -1e300}]'])
def test_numbers_that_a_schedule_cannot_keep(api, ui, task, number):
    """Its runs would get other numbers, so they are refused, with the field."""
    body = {'name': 's', 'task': task.pk, 'crontab': '* * * * *'}
    for payload in ({'args': [json.loads(number)]}, {'kwargs': {'x': json.loads(number)}}):
        response = api('schedules/', json.dumps(body | payload))
        assert response.status_code == 400
        assert list(response.json()) == list(payload)
    assert api('schedules/', json.dumps(body | {'args': ['1e23', [1e15, 10 ** 23, 0.1, -0.05]]})).status_code == 201


def test_deep_enough(api, task):
    """Values nested as deeply as allowed are accepted."""
    response = api(f'tasks/{task.pk}/run/', json.dumps({'kwargs': {'x': json.loads(nested_json(99))}}))
    assert response.status_code in (201, 400)
    assert 'nested' not in response.content.decode()
    schedule = {'name': 's', 'task': task.pk, 'crontab': '* * * * *', 'args': [json.loads(nested_json(99))]}
    assert api('schedules/', json.dumps(schedule)).status_code == 201
