"""pynetbox, the common client, starts a run, follows it and reads its result.

The worker's part is played by the test, with the engine's own functions; real workers are in tests/integration.
"""
from uuid import uuid4

import pynetbox
from django.test import LiveServerTestCase
from pynetbox.core.endpoint import DetailEndpoint

from netbox_celery.engine.store import lifecycle
from netbox_celery.engine.store.database import EngineConnection
from netbox_celery.models import CeleryLogEntry, CeleryResult
from tests.factories import make_log, make_result, make_task
from users.constants import TOKEN_PREFIX
from users.models import Token, User


class PynetboxTest(LiveServerTestCase):

    def setUp(self):
        token = Token.objects.create(user=User.objects.create_superuser(username='admin'))
        self.token = f'{TOKEN_PREFIX}{token.key}.{token.token}'
        self.nb = pynetbox.api(self.live_server_url, token=self.token)
        self.connection = EngineConnection()
        self.addCleanup(self.connection.close)

    def claim(self, task_id):
        """Claim a run, as a worker does. Returns the token of the claim."""
        claimed = lifecycle.claim(
            self.connection, task_id=task_id, attempt=1, nesting=0, worker='celery@test', holder=uuid4()
        )
        return claimed[1]

    def poll(self, run, after):
        """Poll a run as the documentation says."""
        response = self.nb.http_session.get(
            f'{run.url}logs/', params={'after': after}, headers={'Authorization': f'Bearer {self.token}'}
        )
        response.raise_for_status()
        return response.json()

    def test_start_poll_read(self):
        make_task()
        task = self.nb.plugins.celery.tasks.get(name='netbox_example_plugin:hello_world')
        started = DetailEndpoint(task, 'run').create(kwargs={'name': 'Bob'})
        run = self.nb.plugins.celery.results.get(started['id'])
        self.assertEqual((run.status.value, dict(run.kwargs)), ('pending', {'name': 'Bob'}))

        page = self.poll(run, 0)
        self.assertEqual((page['results'], page['finished']), ([], False))
        claims = self.claim(run.task_id)
        row = CeleryResult.objects.get(pk=run.id)
        make_log(row, 'Hello')
        page = self.poll(run, page['next_after'])
        self.assertEqual(([line['message'] for line in page['results']], page['finished']), (['Hello'], False))
        self.assertEqual(page['status']['value'], 'running')

        make_log(row, 'Bob!')
        lifecycle.finish(self.connection, run.task_id, 'completed', claims=claims, result='"Hello Bob!"')
        page = self.poll(run, page['next_after'])
        self.assertEqual(([line['message'] for line in page['results']], page['finished']), (['Bob!'], True))

        run.full_details()
        self.assertEqual((run.status.value, run.result, run.worker), ('completed', 'Hello Bob!', 'celery@test'))

    def test_invalid_arguments(self):
        """The error reaches the caller."""
        make_task()
        task = self.nb.plugins.celery.tasks.get(name='netbox_example_plugin:hello_world')
        with self.assertRaises(pynetbox.RequestError) as caught:
            DetailEndpoint(task, 'run').create(kwargs={'greeting': 'Hi'})
        self.assertIn('greeting', caught.exception.error)

    def test_cancel_and_rerun(self):
        run = self.nb.plugins.celery.results.get(make_result('pending', args=['Bob']).pk)
        cancelled = DetailEndpoint(run, 'cancel').create()
        self.assertEqual(cancelled['status']['value'], 'revoked')
        with self.assertRaises(pynetbox.RequestError) as caught:
            DetailEndpoint(run, 'cancel').create()
        self.assertIn('nothing to cancel', caught.exception.error)

        again = DetailEndpoint(run, 'rerun').create()
        self.assertEqual((again['status']['value'], again['args']), ('pending', ['Bob']))

    def test_whole_log(self):
        """However long it is: pynetbox follows the pages."""
        result = make_result()
        CeleryLogEntry.objects.bulk_create(
            CeleryLogEntry(result=result, message=str(number)) for number in range(250)
        )
        run = self.nb.plugins.celery.results.get(result.pk)
        lines = list(DetailEndpoint(run, 'logs').list())
        self.assertEqual([line['message'] for line in lines], [str(number) for number in range(250)])
        lines = self.nb.plugins.celery.log_entries.filter(result_id=result.pk, id__gt=lines[200]['id'])
        self.assertEqual([line.message for line in lines], [str(number) for number in range(201, 250)])

    def test_lists(self):
        """Rows of lists load the columns that lists leave out when they are used."""
        for number in range(3):
            make_result('completed', args=[number])
        make_result('failed')
        runs = list(self.nb.plugins.celery.results.filter(status='completed'))
        self.assertEqual([run.args for run in runs], [[2], [1], [0]])
        self.assertEqual(self.nb.plugins.celery.results.count(status='failed'), 1)

    def test_tags(self):
        tag = self.nb.extras.tags.create(name='Nightly', slug='nightly')
        run = self.nb.plugins.celery.results.get(make_result('running').pk)
        run.tags = [tag.id]
        self.assertTrue(run.save())
        self.assertEqual(CeleryResult.objects.get().tags.get().name, 'Nightly')

    def test_delete(self):
        run = self.nb.plugins.celery.results.get(make_result('completed').pk)
        self.assertTrue(run.delete())
        self.assertFalse(CeleryResult.objects.exists())
