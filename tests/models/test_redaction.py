"""Secret arguments of later steps, bodies and callbacks are kept in the row that sends them, and shown nowhere."""
import json

import pytest
from celery import chain, chord, group
from django.urls import reverse

from core.models import ObjectChange
from netbox_celery.models import CeleryResult, CelerySchedule, CeleryTask
from netbox_celery.models.redaction import hide, shown
from tests.factories import grant, make_result, make_schedule, make_task
from tests.test_permission_matrix import Actor

pytestmark = pytest.mark.django_db


def step(secret=True, **options):
    hidden = {'argsrepr': '(***)', 'kwargsrepr': '{***}'} if secret else {}
    return {
        'task': 'plugin:step', 'args': ['hunter2' if secret else 'plain'],
        'kwargs': {'pw': 'hunter2'} if secret else {}, 'options': hidden | options, 'subtask_type': None,
        'immutable': False,
    }


def canvas(kind, **kwargs):
    return {'task': f'celery.{kind}', 'args': [], 'kwargs': kwargs, 'options': {}, 'subtask_type': kind}


OPTIONS = {
    'later steps': {'chain': [step(), step(False)]},
    'body': {'chord': step()},
    'callbacks': {'link': [step()], 'link_error': [step()]},
    'callbacks of a callback': {'link': [step(False, link=[step(False, link_error=[step()])])]},
    'parts of a later chord': {'chain': [canvas('chord', header=[step()], body=step(False, link=[step()]))]},
    'group in a chain in a group': {'chain': [canvas('group', tasks=[canvas('chain', tasks=[step(), step()])])]},
    'one callback by itself': {'link': step()},
}


def look(actor, obj):
    """Return everything that shows a row, as text."""
    kind, path = obj._meta.model_name, obj.get_absolute_url()
    fields = 'args kwargs options'
    query = f'{{ celery_{kind.removeprefix("celery")}_list {{ {fields} }} }}'
    return {
        'page': actor.browser.get(path).content,
        'export': actor.browser.get(reverse(f'plugins:netbox_celery:{kind}_list') + '?export=table').content,
        'rest': actor.api.get(f'/api{path}').content,
        'rest fields': actor.api.get(f'/api{path}?fields=id,args,kwargs,options').content,
        'rest list': actor.api.get(f'/api{path.removesuffix(f"{obj.pk}/")}?fields=id,args,kwargs,options').content,
        'rest write': actor.api.patch(f'/api{path}', {'tags': []}, format='json').content,
        'graphql': actor.api.post(reverse('graphql'), {'query': query}, format='json').content,
        'event': json.dumps(obj.serialize_object(), default=str).encode(),
    }


@pytest.mark.parametrize('what', OPTIONS)
def test_options_of_a_run(what):
    actor = Actor()
    grant(actor.user, CeleryResult, actions=['view', 'change', 'delete', 'cancel'])
    result = make_result('pending', args=['mine'], kwargs={}, options={'queue': 'slow', **OPTIONS[what]})
    for way, text in look(actor, result).items():
        assert b'hunter2' not in text, way
        assert way == 'export' or b'***' in text, way
    actor.browser.post(f'{result.get_absolute_url()}cancel/')
    actor.browser.post('/plugins/celery/results/delete/', {'pk': [result.pk], '_confirm': '1', 'confirm': 'true'})
    assert {change.action for change in ObjectChange.objects.all()} >= {'update', 'delete'}
    for change in ObjectChange.objects.all():
        assert 'hunter2' not in json.dumps([change.prechange_data, change.postchange_data])


def test_signatures_among_the_arguments():
    """`celery.map` and the like get signatures as arguments."""
    actor = Actor()
    grant(actor.user, CeleryResult, actions=['view', 'change'])
    result = make_result(celery_name='celery.map', args=[[step()]], kwargs={'task': step(), 'it': [1]}, options={})
    for way, text in look(actor, result).items():
        assert b'hunter2' not in text, way


def test_stored_row_keeps_what_it_takes_to_send():
    result = make_result('pending', options=OPTIONS['later steps'])
    result.refresh_from_db()
    assert result.options == OPTIONS['later steps']
    assert result.display_options['chain'][0]['args'] == '(***)'
    assert result.options == OPTIONS['later steps']


def test_each_hides_its_own():
    assert shown([step(False), {'task': 'x', 'args': [1], 'kwargs': {'a': 1}, 'options': {'argsrepr': '*'}}]) == [
        step(False), {'task': 'x', 'args': '*', 'kwargs': {'a': 1}, 'options': {'argsrepr': '*'}}
    ]
    for value in (
        None, [], {}, {'argsrepr': 'x'}, ['argsrepr'], {'options': ['argsrepr"'], 'args': [1]}, {'options': None},
    ):
        assert hide(value) == value


@pytest.mark.parametrize(('options', 'secret'), [
    ({'argsrepr': '***', 'kwargsrepr': '***'}, 'all'), ({'kwargsrepr': '***'}, 'kwargs'), ({'link': [step()]}, 'none'),
])
def test_schedule_of_the_settings(options, secret):
    actor = Actor()
    grant(actor.user, CelerySchedule, actions=['view', 'change', 'delete'])
    grant(actor.user, CeleryTask, actions=['view', 'run'])
    schedule = make_schedule(
        task=make_task('plugin:any', parameters=[]), origin='settings', options=options, enabled=False,
        args=['hunter2'] if secret == 'all' else ['shown'], kwargs={} if secret == 'none' else {'pw': 'hunter2'},
    )
    texts = look(actor, schedule) | {
        'edit': actor.browser.get(f'{schedule.get_absolute_url()}edit/').content,
        'clone': json.dumps(schedule.clone(), default=str).encode(),
    }
    for way, text in texts.items():
        assert b'hunter2' not in text, way
    assert b'***' in texts['page'] and b'***' in texts['rest'] and b'***' in texts['graphql']
    actor.browser.post('/plugins/celery/schedules/delete/', {'pk': [schedule.pk], '_confirm': '1', 'confirm': 'true'})
    assert 'hunter2' not in json.dumps([change.prechange_data for change in ObjectChange.objects.all()])


def test_run_of_a_schedule_that_could_not_start():
    from netbox_celery.engine.schedules.firing import _fail

    schedule = make_schedule(
        origin='settings', args=['hunter2'], kwargs={'pw': 'hunter2'}, options={'argsrepr': '*', 'kwargsrepr': '**'}
    )
    schedule.now = schedule.created
    _fail(schedule, schedule.created, 'invalid_call', 'no')
    result = CeleryResult.objects.get()
    assert (result.args, result.kwargs, result.display_args, result.display_kwargs) == (None, None, '*', '**')


def test_what_celery_writes(make_task):
    """Options as Celery's canvas writes them into the first message."""
    task = make_task(lambda self, task_id, *args, **kwargs: None, name='test:secret')
    secret = task.s('hunter2', pw='hunter2').set(argsrepr='***', kwargsrepr='***')
    secret.link(task.si('hunter2').set(argsrepr='***'))
    chain(task.si(), secret, group(secret, secret), task.si().set(link_error=[secret])).apply_async()
    chord([task.si(), task.si()], secret)()
    results = CeleryResult.objects.filter(celery_name='test:secret')
    assert len(results) >= 3
    for result in results:
        assert 'hunter2' not in json.dumps(result.display_options)
        assert 'hunter2' not in json.dumps(result.serialize_object(), default=str)
    assert any('hunter2' in json.dumps(result.options, default=str) for result in results)


def test_headers_of_the_engine():
    """The engine's own headers are shown nowhere, also not those of later steps; the caller's own are."""
    step = {'task': 'tests:x', 'args': [], 'options': {'headers': {'netbox_branch': 'b1', 'netbox_celery': True}}}
    options = {
        'headers': {'netbox_branch': 'b1', 'netbox_celery': {'begun': 1}, 'mine': 1}, 'chain': [step], 'queue': 'slow',
    }
    result = make_result(options=options)
    expected = {
        'headers': {'mine': 1}, 'queue': 'slow', 'chain': [{'task': 'tests:x', 'args': [], 'options': {}}],
    }
    assert result.display_options == expected
    assert result.serialize_object()['options'] == expected
    assert make_schedule(options=options).display_options == expected
    only = {'headers': {'netbox_branch': 'b1'}}
    assert make_result(options=only).display_options == {}
    # A caller's own data with such names is shown
    assert make_result(args=[only], options={}).display_args == [only]
