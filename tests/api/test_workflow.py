"""`results/{id}/workflow/`, and `results/{id}/cancel/` of a whole workflow."""
from uuid import uuid4

from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from core.models import ObjectChange
from netbox_celery.models import CeleryResult
from tests.factories import grant, make_result
from utilities.testing import APITestCase


def make_chain(count, **columns):
    """Make a workflow in which each run was started by the one before it."""
    runs = []
    for number in range(count):
        task_id = uuid4()
        runs.append(make_result(**{
            'task_id': task_id, 'name': f'step {number}', 'root_id': runs[0].task_id if runs else task_id,
            'parent_id': runs[-1].task_id if runs else None, **columns,
        }))
    return runs


class WorkflowTestCase(APITestCase):
    view_namespace = 'plugins-api:netbox_celery'

    def url(self, result, name='workflow'):
        return reverse(f'{self._get_view_namespace()}:celeryresult-{name}', kwargs={'pk': result.pk})

    def workflow(self, result):
        response = self.client.get(self.url(result), **self.header)
        self.assertHttpStatus(response, 200)
        return response.json()


class WorkflowTest(WorkflowTestCase):

    def test_tree(self):
        """Whichever of its runs is requested: all of them, each with its parent in the tree."""
        grant(self.user, CeleryResult)
        make_result('completed')
        first, second, third = make_chain(3)
        branch = make_result('running', root_id=first.task_id, parent_id=first.task_id)
        for result in (first, second, third, branch):
            answer = self.workflow(result)
            self.assertEqual(
                [(run['id'], run['parent'], run['depth']) for run in answer['runs']],
                [(first.pk, None, 0), (second.pk, first.pk, 1), (third.pk, second.pk, 1), (branch.pk, first.pk, 1)]
            )
            self.assertEqual(
                (answer['root_id'], answer['count'], answer['hidden'], answer['finished']),
                (str(first.task_id), 4, 0, False)
            )
        self.assertEqual(answer['runs'][3]['status']['value'], 'running')

    def test_single_run(self):
        grant(self.user, CeleryResult)
        answer = self.workflow(make_result('completed'))
        self.assertEqual((answer['count'], answer['finished']), (1, True))

    def test_hidden_runs_do_not_break_the_tree(self):
        """Children of an invisible run are under the next one above."""
        first, second, third = make_chain(3)
        grant(self.user, CeleryResult, constraints=[{'pk': first.pk}, {'pk': third.pk}])
        answer = self.workflow(third)
        self.assertEqual(
            [(run['id'], run['parent']) for run in answer['runs']], [(first.pk, None), (third.pk, first.pk)]
        )
        self.assertEqual(answer['hidden'], 1)
        self.assertNotIn('step 1', str(answer))
        self.assertHttpStatus(self.client.get(self.url(second), **self.header), 404)

    def test_permission(self):
        self.assertHttpStatus(self.client.get(self.url(make_result()), **self.header), 403)

    def test_queries(self):
        """However many runs there are, the number of queries is the same."""
        grant(self.user, CeleryResult)

        def count(steps):
            runs = make_chain(steps)
            with CaptureQueriesContext(connection) as context:
                self.assertEqual(self.workflow(runs[0])['count'], steps)
            return len(context)

        count(2)
        self.assertEqual(count(3), count(40))


class CancelWorkflowTest(WorkflowTestCase):

    def cancel(self, result, status=200):
        response = self.client.post(self.url(result, 'cancel'), {'workflow': True}, format='json', **self.header)
        self.assertHttpStatus(response, status)
        return response

    def test_all_runs(self):
        """Each is cancelled, and each has its entry in the change log."""
        grant(self.user, CeleryResult, actions=['view', 'cancel'])
        other = make_result('pending')
        runs = make_chain(3, status='pending')
        self.assertEqual(self.cancel(runs[1]).json()['status']['value'], 'revoked')
        for run in runs:
            run.refresh_from_db()
            self.assertEqual((run.status, run.reason), ('revoked', 'cancelled'))
            self.assertIn(self.user.username, run.error)
        other.refresh_from_db()
        self.assertEqual(other.status, 'pending')
        changes = ObjectChange.objects.all()
        self.assertEqual({change.changed_object_id for change in changes}, {run.pk for run in runs})
        self.assertEqual({change.user for change in changes}, {self.user})

    def test_permission_on_each(self):
        """Runs that the user may not cancel continue."""
        runs = make_chain(3, status='pending')
        grant(self.user, CeleryResult)
        grant(self.user, CeleryResult, actions=['cancel'], constraints=[{'pk': runs[0].pk}, {'pk': runs[1].pk}])
        self.cancel(runs[0])
        self.assertEqual(
            list(CeleryResult.objects.order_by('pk').values_list('status', flat=True)),
            ['revoked', 'revoked', 'pending']
        )
        self.cancel(runs[2], status=403)

    def test_finished(self):
        grant(self.user, CeleryResult, actions=['view', 'cancel'])
        self.cancel(make_chain(2)[0], status=400)
        running = make_chain(2, status='running')
        for __ in range(2):
            self.cancel(running[0])
        self.assertEqual(ObjectChange.objects.count(), 2)

    def test_run_alone(self):
        """Without the option, only the run itself is cancelled."""
        grant(self.user, CeleryResult, actions=['view', 'cancel'])
        runs = make_chain(2, status='pending')
        self.client.post(self.url(runs[0], 'cancel'), {}, format='json', **self.header)
        self.assertEqual(
            list(CeleryResult.objects.order_by('pk').values_list('status', flat=True)), ['revoked', 'pending']
        )
