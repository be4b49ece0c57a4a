"""A schedule from its form to its history, in a real browser, with a real worker."""
import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest
from playwright.sync_api import expect

from .test_pages import PHONE, TOO_WIDE, browser, open_page, session, sign_in  # noqa: F401 - fixtures

pytestmark = pytest.mark.browser

LIST = '/plugins/celery/schedules/'
#: The reader's time zone, half an hour apart from all others, so that none is mistaken for another.
HERE = 'Asia/Tehran'


def make(site, **values):
    """Make a schedule by REST, and return its primary key."""
    return site.rest('schedules/', {
        'name': f'Greeting {uuid4()}', 'task': {'name': 'netbox_example_plugin:hello_world'},
        'crontab': '30 2 * * *', **values,
    })['id']


def choose(page, field, option):
    """Choose from one of NetBox's lists, as with the mouse."""
    box = page.locator(f'#id_{field} + .ts-wrapper')
    box.locator('.ts-control').click()
    box.get_by_role('option', name=option).first.click()


def times(panel):
    """Return the times in a table of next runs, as they are displayed."""
    return [text.split(' ', 1)[1] for text in panel.locator('[data-celery-time]').all_inner_texts()]


def test_schedule_is_created(site, open_page):  # noqa: F811
    """The preview follows the input, in the reader's time zone; what is saved is what was shown."""
    page = open_page(LIST, timezone_id=HERE)
    page.get_by_role('link', name='Add', exact=True).last.click()
    page.wait_for_url('**/add/**')
    preview = page.locator('#schedule-preview')
    expect(preview).to_contain_text('Enter a schedule to preview')
    name = f'Audit {uuid4()}'
    page.get_by_label('Name', exact=True).fill(name)

    # A crontab, by the clocks of Berlin
    page.locator('#id_crontab').press_sequentially('30 2 * * mon-fri')
    expect(preview).to_contain_text('At 02:30, Monday through Friday')
    choose(page, 'timezone', 'Europe/Berlin')
    expect(preview).to_contain_text('(Europe/Berlin)')
    expect(preview).to_contain_text(re.compile(f'Time \\({HERE}\\)', re.IGNORECASE))
    expect(preview.locator('tbody tr')).to_have_count(10)
    shown = [datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(HERE)) for text in times(preview)]
    there = [moment.astimezone(ZoneInfo('Europe/Berlin')) for moment in shown]
    assert {(moment.hour, moment.minute) for moment in there} == {(2, 30)}
    assert all(moment.isoweekday() <= 5 for moment in there)

    # Errors are shown immediately
    page.locator('#id_crontab').fill('61 2 * * *')
    expect(preview).to_contain_text('is not a valid minute')
    page.locator('#id_crontab').fill('0 3 * * *')
    expect(preview).to_contain_text('At 03:00')

    # Another kind has other fields; what was entered elsewhere stays
    choose(page, 'task', 'netbox_example_plugin:audit_devices')
    page.get_by_label('delay').fill('0')
    choose(page, 'kind', 'Interval')
    expect(page.locator('#id_crontab')).to_have_count(0)
    page.locator('#id_interval').fill('2')
    choose(page, 'interval_unit', 'hours')
    expect(preview).to_contain_text('Every 2 hours')
    first, second = (datetime.fromisoformat(text) for text in times(preview)[:2])
    assert second - first == timedelta(hours=2)
    expect(page.get_by_label('Name', exact=True)).to_have_value(name)
    expect(page.get_by_label('delay')).to_have_value('0')

    # By parameter, as JSON, and back
    choose(page, 'arguments_as', 'As JSON')
    expect(page.locator('#id_kwargs')).to_have_value(re.compile('"delay": 0'))
    page.locator('#id_kwargs').fill('{"site": "ams", "delay": 0}')
    choose(page, 'arguments_as', 'By parameter')
    expect(page.get_by_label('site')).to_have_value('ams')

    page.get_by_role('button', name='Create', exact=True).click()
    page.wait_for_url(re.compile(r'/schedules/\d+/$'))
    schedule = site.rest(f'schedules/{page.url.rstrip("/").rsplit("/", 1)[1]}/')
    assert (schedule['name'], schedule['owner']['username']) == (name, site.username)
    assert (schedule['interval'], schedule['kwargs']) == (7200, {'site': 'ams', 'delay': 0})
    # The page shows the same times as REST, in the reader's time zone
    due = datetime.fromisoformat(schedule['next_run']).astimezone(ZoneInfo(HERE))
    assert times(page.locator('.celery-next-runs'))[0] == f'{due:%Y-%m-%d %H:%M:%S}'


def test_invalid_arguments(site, open_page):  # noqa: F811
    """The errors are at their fields, and all input is still there."""
    page = open_page(f'{LIST}add/')
    page.get_by_label('Name', exact=True).fill('Wrong')
    page.locator('#id_crontab').fill('0 3 * * *')
    choose(page, 'task', 'netbox_example_plugin:slow')
    choose(page, 'arguments_as', 'As JSON')
    page.locator('#id_kwargs').fill('{"minutes": 1}')
    page.get_by_role('button', name='Create', exact=True).click()
    expect(page.locator('#schedule-what')).to_contain_text('minutes: is not a parameter of this task')
    expect(page.locator('#id_kwargs')).to_have_value(re.compile('"minutes": 1'))
    expect(page.locator('#id_crontab')).to_have_value('0 3 * * *')
    expect(page.locator('#schedule-preview tbody tr')).to_have_count(10)


def test_form_by_keyboard(site, open_page):  # noqa: F811
    """A schedule is created without a mouse: after choosing from a list the focus is there."""
    page = open_page(f'{LIST}add/')
    name = f'By keyboard {uuid4()}'
    page.get_by_label('Name', exact=True).focus()
    page.keyboard.type(name)

    kind = page.get_by_role('combobox', name=re.compile('^Type'))
    kind.focus()
    page.keyboard.press('ArrowDown')
    page.keyboard.press('Enter')
    expect(page.locator('#id_interval')).to_be_visible()
    expect(kind).to_be_focused()
    expect(kind).to_have_attribute('aria-expanded', 'false')
    page.keyboard.press('Tab')
    expect(page.locator('#id_interval')).to_be_focused()
    page.keyboard.type('5')
    expect(page.locator('#schedule-preview')).to_contain_text('Every 5 minutes')

    task = page.get_by_role('combobox', name='Task')
    task.focus()
    page.keyboard.type('hello_world')
    expect(page.locator('#id_task + .ts-wrapper').get_by_role('option')).to_have_count(1)
    page.keyboard.press('Enter')
    greeted = page.locator('#id_parameter_name')
    expect(greeted).to_be_visible()
    expect(task).to_be_focused()
    expect(task).to_have_attribute('aria-expanded', 'false')
    greeted.focus()
    page.keyboard.press('Control+a')
    page.keyboard.type('Bob')
    page.keyboard.press('Enter')
    page.wait_for_url(re.compile(r'/schedules/\d+/$'))
    schedule = site.rest(f'schedules/{page.url.rstrip("/").rsplit("/", 1)[1]}/')
    assert (schedule['name'], schedule['interval'], schedule['kwargs']) == (name, 300, {'name': 'Bob'})


def test_schedule_is_run_and_followed(site, open_page):  # noqa: F811
    """Run now leads to the run, and the run is in the history."""
    pk = make(site, kwargs={'name': 'Bob'})
    page = open_page(f'{LIST}{pk}/')
    page.locator('.nav-tabs').get_by_role('link', name='Runs', exact=True).click()
    expect(page.locator('body')).to_contain_text('No runs yet, or none that you have permission to view.')
    page.goto(f'{site.url}{LIST}{pk}/')
    page.get_by_role('button', name='Run Now').click()
    dialog = page.locator('#htmx-modal')
    expect(dialog).to_contain_text('Runs its task now as you')
    dialog.get_by_role('button', name='Run Now').click()
    page.wait_for_url(re.compile(r'/results/\d+/$'))
    expect(page.locator('#celery-status .badge')).to_have_text('Completed', timeout=30_000)
    expect(page.locator('#celery-log-lines')).to_contain_text('Hello Bob!')
    page.goto(f'{site.url}{LIST}{pk}/runs/')
    expect(page.locator('.celery-history')).to_contain_text('100%')
    expect(page.locator('.celery-history')).to_contain_text('median')
    expect(page.locator('table.object-list tbody tr')).to_have_count(1)
    assert site.rest(f'results/?schedule_id={pk}')['count'] == 1


def test_schedule_is_disabled_and_enabled(site, open_page):  # noqa: F811
    """From its page, by mouse and by keyboard, and with others from the list."""
    pk, other = make(site), make(site)
    page = open_page(f'{LIST}{pk}/')
    page.get_by_role('button', name='Disable', exact=True).click()
    page.locator('#htmx-modal').get_by_role('button', name='Disable', exact=True).click()
    expect(page.locator('body')).to_contain_text('The schedule is disabled; it would run at:')
    assert site.rest(f'schedules/{pk}/')['next_run'] is None

    enable = page.get_by_role('button', name='Enable', exact=True)
    enable.focus()
    page.keyboard.press('Enter')
    confirm = page.locator('#htmx-modal').get_by_role('button', name='Enable', exact=True)
    expect(confirm).to_be_visible()
    confirm.focus()
    page.keyboard.press('Enter')
    expect(page.get_by_role('button', name='Disable', exact=True)).to_be_visible()
    assert datetime.fromisoformat(site.rest(f'schedules/{pk}/')['next_run']) > datetime.now(UTC)

    page.goto(f'{site.url}{LIST}')
    for key in (pk, other):
        page.locator(f'input[name="pk"][value="{key}"]').check()
    page.get_by_role('button', name='Edit Selected').click()
    page.wait_for_url('**/edit/**')
    choose(page, 'enabled', 'No')
    page.get_by_role('button', name='Apply').click()
    expect(page.locator('body')).to_contain_text('Updated 2 schedules')
    assert [site.rest(f'schedules/{key}/')['enabled'] for key in (pk, other)] == [False, False]


#: A user who may create and change schedules, view all tasks, and run one of them.
SOMEBODY = '''
import django; django.setup()
from core.models import ObjectType
from netbox_celery.models import CelerySchedule, CeleryTask
from users.models import ObjectPermission, User
user = User.objects.create_user('bob', password='Bob-can-l00k')
for model, actions, constraints in (
    (CelerySchedule, ['view', 'add', 'change'], None), (CeleryTask, ['view'], None),
    (CeleryTask, ['run'], {'name': 'netbox_example_plugin:hello_world'}),
):
    permission = ObjectPermission.objects.create(name=f'{model} {actions}', actions=actions, constraints=constraints)
    permission.users.add(user)
    permission.object_types.add(ObjectType.objects.get_for_model(model))
'''


@pytest.fixture(scope='module')
def limited(site, browser):  # noqa: F811
    """The cookies of a user who may run one task only."""
    subprocess.run([sys.executable, '-c', SOMEBODY], env={**os.environ, **site.environ}, check=True)
    context = browser.new_context()
    sign_in(context.new_page(), SimpleNamespace(url=site.url, username='bob', password='Bob-can-l00k'))
    state = context.storage_state()
    context.close()
    return {**state, 'origins': []}


def test_user_who_may_run_one_task(site, limited, open_page):  # noqa: F811
    """They are offered that task only, and can just view schedules of other tasks."""
    page = open_page(f'{LIST}add/', storage_state=limited)
    page.locator('#id_task + .ts-wrapper .ts-control').click()
    options = page.locator('#id_task + .ts-wrapper').get_by_role('option')
    expect(options).to_have_count(1)
    expect(options).to_contain_text('netbox_example_plugin:hello_world')

    theirs = make(site)
    other = make(site, task={'name': 'netbox_example_plugin:audit_devices'})
    buttons = ('Run Now', 'Disable', 'Take Ownership')
    page.goto(f'{site.url}{LIST}{theirs}/')
    for name in buttons:
        expect(page.get_by_role('button', name=name, exact=True)).to_be_visible()
    page.goto(f'{site.url}{LIST}{other}/')
    expect(page.locator('.celery-next-runs tbody tr')).to_have_count(10)
    for name in buttons:
        expect(page.get_by_role('button', name=name, exact=True)).to_have_count(0)
    page.goto(f'{site.url}{LIST}{other}/edit/')
    expect(page.locator('body')).to_contain_text('You cannot save changes')
    page.locator('#id_description').fill('Mine')
    page.get_by_role('button', name='Save').click()
    expect(page.locator('body')).to_contain_text('You do not have permission to run the task.')
    assert site.rest(f'schedules/{other}/')['description'] == ''


@pytest.fixture(scope='module')
def schedules(site):
    """Schedules that are hard to display, by what they are."""
    long = make(site, name=f'{"x" * 100} {"word " * 20}{uuid4()}', description='d' * 200, priority=3,
                kwargs={'name': 'y' * 300}, timezone='America/Argentina/Buenos_Aires')
    site.wait(site.rest(f'schedules/{long}/run/', {})['id'])
    return {'long': long, 'empty': make(site)}


PAGES = {
    'list': lambda schedules: LIST,
    'schedule': lambda schedules: f'{LIST}{schedules["long"]}/',
    'history': lambda schedules: f'{LIST}{schedules["long"]}/runs/',
    'empty history': lambda schedules: f'{LIST}{schedules["empty"]}/runs/',
    'form': lambda schedules: f'{LIST}{schedules["long"]}/edit/',
    'new form': lambda schedules: f'{LIST}add/',
}


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('name', PAGES)
def test_page_fits_a_phone(schedules, open_page, name, scheme):  # noqa: F811
    page = open_page(PAGES[name](schedules), viewport=PHONE, color_scheme=scheme)
    expect(page.locator('html')).to_have_attribute('data-bs-theme', scheme)
    page.wait_for_load_state('networkidle')
    assert page.evaluate(TOO_WIDE) == []
