"""Runs in the NetBox with ten other plugins, and prints as JSON what it finds there.

    python among_plugins.py QUEUE
"""
import json
import sys

import django

django.setup()

from django.apps import apps  # noqa: E402
from django.test import Client  # noqa: E402
from django.urls import reverse  # noqa: E402
from netbox_bgp.models import CommunityList  # noqa: E402
from netbox_data_flows.models import Application  # noqa: E402
from netbox_dns.models import View  # noqa: E402
from netbox_inventory.models import Supplier  # noqa: E402
from netbox_test_plugin import tasks  # noqa: E402

from netbox_celery.celery import app  # noqa: E402
from netbox_celery.models import CeleryResult, CeleryTask  # noqa: E402
from users.models import User  # noqa: E402

LISTS = ('celeryresult', 'celerytask', 'celeryschedule', 'celeryworker')
OTHERS = (
    '/', '/api/plugins/celery/results/', '/plugins/access-lists/access-lists/', '/plugins/floorplan/floorplans/',
    '/plugins/netbox-dns/views/', '/plugins/netbox_topology_views/topology/',
)


def objects():
    yield View.objects.create(name='internal')
    yield Supplier.objects.create(name='Supplier', slug='supplier')
    yield Application.objects.create(name='Application')
    yield CommunityList.objects.create(name='Communities')


def main(queue):
    user = User.objects.create_superuser('alice')
    client = Client()
    client.force_login(user)
    found = {'runs': {}, 'pages': {}, 'apps': sorted(config.name for config in apps.get_app_configs())}

    def get(url, **data):
        response = client.get(url, data, follow=True)
        found['pages'][url] = response.status_code
        return response.content.decode()

    for instance in objects():
        run = CeleryResult.enqueue(tasks.say, args=('x', 2), user=user, instance=instance, queue=queue)
        got = app.AsyncResult(str(run.task_id)).get(timeout=60)
        run.refresh_from_db()
        page = get(run.get_absolute_url())
        found['runs'][instance._meta.label] = {
            'status': run.status, 'got': got, 'lines': run.log_entries.count(),
            'object': run.object == instance, 'linked': instance.get_absolute_url() in page,
            'listed': 'Celery Runs' in get(instance.get_absolute_url()),
        }

    # As another program starts one of them
    task, view = CeleryTask.objects.get(name=tasks.echo.name), View.objects.get(name='internal')
    response = client.post(
        reverse('plugins-api:netbox_celery-api:celerytask-run', args=[task.pk]),
        {'args': [1], 'queue': queue, 'object_type': 'netbox_dns.view', 'object_id': view.pk},
        content_type='application/json',
    )
    found['rest'] = [response.status_code, response.json().get('object', response.json())]

    for name in LISTS:
        get(reverse(f'plugins:netbox_celery:{name}_list'))
    for url in OTHERS:
        get(url)
    schema = json.loads(get('/api/schema/', format='json'))
    found['schema'] = sorted({path.split('/')[3] for path in schema['paths'] if path.startswith('/api/plugins/')})
    response = client.post('/graphql/', {'query': """{
        __schema { types { name } }
        celery_result_list { id status }
        netbox_dns_view_list { id name }
    }"""}, content_type='application/json').json()
    found['graphql'] = response.get('errors') or len(response['data']['celery_result_list'])
    print(json.dumps(found))


main(sys.argv[1])
