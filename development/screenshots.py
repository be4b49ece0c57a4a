"""
The pictures of the documentation, from the running demo: `make up && make screenshots`.

They show the real pages: what has changed there is shown when this is run again.
"""

import json
import shutil
import sys

from playwright.sync_api import expect, sync_playwright

from .stack.paths import ROOT, STATE

IMAGES = ROOT / 'docs' / 'images'

CHROMIUM = ('chromium', 'chromium-browser', 'google-chrome')
ARGUMENTS = [
    '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
    '--disable-component-update', '--disable-sync',
]


class Photographer:
    """
    Args:
        page: Of the browser, with somebody signed in
        url: The demo's address
    """

    def __init__(self, page, url):
        self.page = page
        self.url = url

    def sign_in(self, username, password):
        self.go('login/')
        self.page.get_by_label('Username').fill(username)
        self.page.get_by_label('Password').fill(password)
        self.page.get_by_role('button', name='Sign In').click()
        self.page.wait_for_url(self.url)

    def go(self, path):
        self.page.goto(self.url + path)

    def take(self, name, height=800):
        self.page.set_viewport_size({'width': 1280, 'height': height})
        # No button that the mouse is over, and no message in front of the page
        self.page.mouse.move(0, 0)
        self.page.locator('.toast').evaluate_all('toasts => toasts.forEach(toast => toast.remove())')
        self.page.wait_for_load_state('load')
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


def main():
    try:
        card = json.loads((STATE / 'demo.json').read_text())
    except FileNotFoundError:
        return 'The demo is not running: make up'
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if path is None:
        return 'There is no Chromium: sudo apt-get install chromium'
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        photographer = Photographer(browser.new_page(color_scheme='light'), card['url'])
        photographer.sign_in(card['username'], card['password'])
        photographer.all()
        browser.close()
    return 0


if __name__ == '__main__':
    sys.exit(main())
