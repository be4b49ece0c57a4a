"""
Takes the screenshots of the documentation, from the running demo: `make up && make screenshots`.

Screenshots that need other plugins are taken in a separate NetBox: `make screenshots ARGS=neighbours` takes only these.

They show the real pages: run the command again after changes of the pages.
"""

import json
import os
import shutil
import subprocess
import sys

from playwright.sync_api import expect, sync_playwright

from .neighbours_site import neighbours_site
from .stack.instance import environment
from .stack.paths import ROOT, STATE

IMAGES = ROOT / 'docs' / 'images'

CHROMIUM = ('chromium', 'chromium-browser', 'google-chrome')
ARGUMENTS = [
    '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
    '--disable-component-update', '--disable-sync',
]

# Greetings, then a backup, which fails, so that the last step does not run
WORKFLOW = '''
import django; django.setup()
from celery import chain, chord
from netbox_celery.models import CeleryResult
from netbox_example_plugin.tasks import audit_devices, backup_configs, flaky, hello_world, slow
chain(
    audit_devices.si(delay=0.1).set(netbox_name='Audit'),
    chord(
        [hello_world.si(site) for site in ('Amsterdam', 'Frankfurt', 'Lisbon')] + [flaky.si(2), slow.si(3)],
        backup_configs.si(delay=0.1).set(netbox_name='Backup'),
    ),
    hello_world.si('operators').set(netbox_name='Tell the operators'),
).apply_async()
print(CeleryResult.objects.latest('pk').root_id)
'''


class Photographer:
    """
    Args:
        page: The browser's page, with a logged-in user
        card: URL and credentials of the demo
    """

    def __init__(self, page, card):
        self.page = page
        self.card = card
        self.url = card['url']

    def sign_in(self):
        self.go('login/')
        self.page.get_by_label('Username').fill(self.card['username'])
        self.page.get_by_label('Password').fill(self.card['password'])
        self.page.get_by_role('button', name='Sign In').click()
        self.page.wait_for_url(self.url)

    def go(self, path):
        self.page.goto(self.url + path)

    def take(self, name, height=800):
        self.page.set_viewport_size({'width': 1280, 'height': height})
        # No button under the mouse, and no message in front of the page
        self.page.mouse.move(0, 0)
        self.page.locator('.toast').evaluate_all('toasts => toasts.forEach(toast => toast.remove())')
        self.page.wait_for_load_state('load')
        # From its top, even if it has more items than fit
        self.page.locator('.navbar-vertical, .navbar-vertical *').evaluate_all(
            'elements => elements.forEach(element => { element.scrollTop = 0; })'
        )
        self.page.wait_for_timeout(300)
        self.page.screenshot(path=IMAGES / f'{name}.png', animations='disabled')
        print(f'docs/images/{name}.png', flush=True)

    def open_task(self, name):
        self.go('plugins/celery/tasks/')
        self.page.get_by_role('link', name=f'netbox_example_plugin:{name}').first.click()
        self.page.wait_for_url('**/tasks/*/')

    def open_form(self, name):
        self.open_task(name)
        self.page.get_by_role('button', name='Run', exact=True).click()
        self.page.wait_for_url('**/run/**')

    def start(self, name, **arguments):
        """
        Run a task by its form, and stay on the page of the run.
        """
        self.open_form(name)
        for parameter, value in arguments.items():
            self.page.get_by_label(parameter).fill(str(value))
        self.page.get_by_role('button', name='Run', exact=True).click()
        self.page.wait_for_url('**/results/*/')

    def start_workflow(self):
        """
        Start a workflow by code, and open the page of its first run.
        """
        root = subprocess.run(
            [self.card['python'], '-c', WORKFLOW], env={**os.environ, **environment(self.card['netbox_root'])},
            capture_output=True, text=True, check=True,
        ).stdout.split()[-1]
        self.go(f'plugins/celery/results/?task_id={root}')
        self.page.locator('table.object-list tbody a').filter(has_text='Audit').first.click()

    def choose(self, field, text):
        """
        Choose from one of NetBox's selectors.
        """
        box = self.page.locator(f'#id_{field} + .ts-wrapper')
        box.locator('.ts-control').click()
        box.get_by_role('option', name=text).first.click()

    def open_schedule(self, name):
        self.go('plugins/celery/schedules/')
        self.page.get_by_role('link', name=name, exact=True).click()
        self.page.wait_for_url('**/schedules/*/')

    def run_schedule(self, name):
        self.open_schedule(name)
        self.page.get_by_role('button', name='Run Now').click()
        self.page.locator('#htmx-modal').get_by_role('button', name='Run Now').click()
        self.page.wait_for_url('**/results/*/')

    def fill_in_schedule(self):
        self.go('plugins/celery/schedules/add/')
        self.page.get_by_label('Name', exact=True).fill('Backup on working days')
        self.choose('task', 'netbox_example_plugin:backup_configs')
        self.choose('timezone', 'Europe/Lisbon')
        self.page.locator('#id_crontab').fill('30 2 * * mon-fri')
        expect(self.page.locator('#schedule-preview tbody tr')).to_have_count(10)

    def until(self, text):
        expect(self.page.locator('#celery-status')).to_contain_text(text, timeout=60_000)

    def all(self):
        self.start('backup_configs', delay=0.1)
        self.until('Failed')
        self.take('failed', 1100)

        self.start('audit_devices', delay=1)
        self.until('8 of 12')
        self.take('run', 860)
        self.go('plugins/celery/results/')
        self.take('results')

        self.open_task('audit_devices')
        self.take('task')
        self.open_form('audit_devices')
        self.page.get_by_label('site').fill('ams')
        self.take('run-form', 860)
        self.go('plugins/celery/workers/')
        self.take('workers', 420)

        self.start_workflow()
        self.until('Completed')
        self.page.reload()
        self.page.get_by_role('link', name='Workflow', exact=False).first.click()
        expect(self.page.locator('#celery-workflow')).to_contain_text('Upstream failed', timeout=60_000)
        self.page.reload()
        self.take('workflow', 760)

        for __ in range(4):
            self.run_schedule('Audit Amsterdam')
            self.until('Completed')
        self.go('plugins/celery/schedules/')
        self.take('schedules', 640)
        self.open_schedule('Audit Amsterdam')
        self.take('schedule', 1100)
        self.page.locator('.nav-tabs').get_by_role('link', name='Runs').click()
        self.page.wait_for_url('**/runs/')
        self.take('schedule-runs', 760)
        self.fill_in_schedule()
        self.take('schedule-form', 1320)

    def neighbours(self):
        self.go(f'plugins/celery/results/?task_id={self.card["run"]}')
        self.page.locator('table.object-list tbody a').filter(has_text='Audit').first.click()
        self.until('Completed')
        self.page.reload()
        self.take('branch', 860)
        self.go('plugins/celery/tasks/')
        self.take('not-loaded', 480)


def photographer(browser, card):
    # Readers are in another time zone than NetBox
    found = Photographer(browser.new_page(color_scheme='light', timezone_id='Europe/Berlin'), card)
    found.page.set_default_timeout(90_000)
    found.sign_in()
    return found


def main(only=None):
    try:
        card = None if only == 'neighbours' else json.loads((STATE / 'demo.json').read_text())
    except FileNotFoundError:
        return 'The demo is not running: make up'
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if path is None:
        return 'Chromium is not installed: sudo apt-get install chromium'
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        if card:
            photographer(browser, card).all()
        with neighbours_site() as card:
            photographer(browser, card).neighbours()
        browser.close()
    return 0


if __name__ == '__main__':
    sys.exit(main(*sys.argv[1:]))
