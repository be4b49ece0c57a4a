"""What a person sees: a real browser, a real web process, a real worker."""
import re
import shutil
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import expect, sync_playwright

pytestmark = pytest.mark.browser

CHROMIUM = ('chromium', 'chromium-browser', 'google-chrome')
ARGUMENTS = (
    '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
    '--disable-component-update', '--disable-sync',
)
DESKTOP = {'width': 1280, 'height': 900}
PHONE = {'width': 390, 'height': 844}
#: What htmx logs for a request that is replaced by a newer one, or aborted with its page.
ABORTED = re.compile('htmx:(sendAbort|afterRequest)')


@pytest.fixture(scope='module')
def browser():
    # Not for the whole session: while Playwright runs, Django takes its thread for an asynchronous one
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if path is None:
        pytest.skip('There is no Chromium: sudo apt-get install chromium')
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield browser
        browser.close()


def sign_in(page, site):
    page.goto(f'{site.url}/login/')
    page.get_by_label('Username').fill(site.username)
    page.get_by_label('Password').fill(site.password)
    page.get_by_role('button', name='Sign In').click()
    page.wait_for_url(f'{site.url}/')


@pytest.fixture(scope='module')
def session(browser, site):
    """The cookies of a signed-in user."""
    context = browser.new_context()
    sign_in(context.new_page(), site)
    state = context.storage_state()
    context.close()
    # Without the colours that NetBox has chosen for that page
    return {**state, 'origins': []}


@pytest.fixture
def open_page(browser, site, session):
    """Open a page as a signed-in user. It must cause no error, and load nothing from another host."""
    contexts, problems = [], []

    def open(path, **options):
        context = browser.new_context(**{'storage_state': session, 'viewport': DESKTOP, **options})
        contexts.append(context)
        page = context.new_page()
        page.on('pageerror', lambda error: problems.append(f'{page.url}: {error}'))
        page.on('console', lambda message: message.type == 'error' and not ABORTED.match(message.text)
                and problems.append(f'{page.url}: {message.text}'))
        page.on('request', lambda request: urlsplit(request.url).netloc not in (urlsplit(site.url).netloc, '')
                and problems.append(f'{page.url} loads {request.url}'))
        page.goto(f'{site.url}{path}')
        return page

    yield open
    for context in contexts:
        context.close()
    assert not problems


def test_task_is_run_and_watched_live(site, open_page):
    """A user runs a task from its page and sees its lines while it runs, then its end and its changes."""
    page = open_page('/plugins/celery/tasks/')
    page.get_by_role('link', name='netbox_example_plugin:audit_devices').first.click()
    page.get_by_role('button', name='Run', exact=True).click()
    page.wait_for_url('**/run/**')
    page.get_by_label('delay').fill('0.4')
    page.get_by_role('button', name='Run', exact=True).click()
    page.wait_for_url('**/plugins/celery/results/*/')
    pk = int(page.url.rstrip('/').rsplit('/', 1)[1])
    status, lines = page.locator('#celery-status'), page.locator('#celery-log-lines .celery-line')

    # Lines and progress appear while it runs, without any action on the page
    expect(lines.nth(2)).to_be_visible(timeout=15_000)
    expect(status).to_contain_text('Running')
    assert site.rest(f'results/{pk}/')['status']['value'] == 'running'
    seen = lines.count()
    expect(lines.nth(seen)).to_be_visible()
    expect(status).to_contain_text('of 12')

    # Then its end
    expect(status.locator('.badge')).to_have_text('Completed', timeout=30_000)
    run = site.rest(f'results/{pk}/')
    assert (run['status']['value'], run['user']['username']) == ('completed', site.username)
    expect(page.locator('#celery-result')).to_contain_text('"devices": 12')
    expect(page.get_by_role('button', name='Run Again')).to_be_visible()
    assert lines.count() == site.rest(f'results/{pk}/logs/')['count']

    # The page is quiet now
    polls = []
    page.on('request', lambda request: polls.append(request.url))
    page.wait_for_timeout(2500)
    assert polls == []

    # What it changed stands in the change log under the user's name
    page.get_by_role('tab').or_(page.get_by_role('link', name='Changes')).filter(has_text='Changes').first.click()
    changes = page.locator('table.object-list tbody tr')
    expect(changes).to_have_count(12)
    expect(changes.first).to_contain_text(site.username)


def test_run_is_cancelled(site, open_page):
    pk = site.run('slow', seconds=60)
    page = open_page(f'/plugins/celery/results/{pk}/')
    status = page.locator('#celery-status')
    expect(status).to_contain_text('Running', timeout=15_000)
    page.get_by_role('button', name='Cancel', exact=True).click()
    page.locator('#htmx-modal').get_by_role('button', name='Cancel').last.click()
    expect(page.locator('#celery-status')).to_contain_text('Revoked', timeout=15_000)
    expect(page.locator('#celery-error')).to_contain_text(f'Cancelled by {site.username}')
    assert site.wait(pk)['status']['value'] == 'revoked'


@pytest.fixture(scope='module')
def runs(site):
    """Runs that finished in different ways, by the name of the task."""
    runs = {
        'audit_devices': site.run('audit_devices', delay=0),
        'backup_configs': site.run('backup_configs', delay=0),
        'hello_world': site.run('hello_world', name='x' * 300),
    }
    for pk in runs.values():
        site.wait(pk)
    return runs


PAGES = {
    'results': lambda site, runs: '/plugins/celery/results/',
    'completed run': lambda site, runs: f'/plugins/celery/results/{runs["audit_devices"]}/',
    'failed run': lambda site, runs: f'/plugins/celery/results/{runs["backup_configs"]}/',
    'long line': lambda site, runs: f'/plugins/celery/results/{runs["hello_world"]}/',
    'log': lambda site, runs: f'/plugins/celery/results/{runs["backup_configs"]}/log/',
    'tasks': lambda site, runs: '/plugins/celery/tasks/',
    'task': lambda site, runs: f'/plugins/celery/tasks/{site.task("audit_devices")}/',
    'run a task': lambda site, runs: f'/plugins/celery/tasks/{site.task("audit_devices")}/run/',
    'workers': lambda site, runs: '/plugins/celery/workers/',
}


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('name', PAGES)
def test_page_fits_a_phone(site, runs, open_page, name, scheme):
    """No page is wider than a phone: wide content scrolls by itself."""
    page = open_page(PAGES[name](site, runs), viewport=PHONE, color_scheme=scheme)
    expect(page.locator('html')).to_have_attribute('data-bs-theme', scheme)
    page.wait_for_load_state('networkidle')
    assert page.evaluate(TOO_WIDE) == []


# What sticks out, if the page can be scrolled sideways
TOO_WIDE = """() => document.documentElement.scrollWidth <= innerWidth ? [] :
    [...document.querySelectorAll('body *')]
        .filter(element => element.getBoundingClientRect().right > innerWidth + 1)
        .slice(0, 5).map(element => element.outerHTML.slice(0, 150))"""


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_log_can_be_read(site, runs, open_page, scheme):
    """Text contrasts with its background: 4.5 to 1 (WCAG AA)."""
    page = open_page(f'/plugins/celery/results/{runs["backup_configs"]}/log/', color_scheme=scheme)
    expect(page.locator('.celery-line').first).to_be_visible()
    assert page.evaluate(FAINT) == []


# What is fainter in the log than it may be
FAINT = """() => {
    const channels = colour => (colour.match(/[\\d.]+/g) || []).map(Number);
    const luminance = ([r, g, b]) => [r, g, b].map(value => value / 255)
        .map(value => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
        .reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0);
    const background = element => {
        for (; element; element = element.parentElement) {
            const colour = channels(getComputedStyle(element).backgroundColor);
            if (colour.length === 3 || colour[3] === 1) return colour;
        }
        return [255, 255, 255];
    };
    const contrast = element => {
        const [light, dark] = [channels(getComputedStyle(element).color), background(element)]
            .map(luminance).sort((a, b) => b - a);
        return (light + 0.05) / (dark + 0.05);
    };
    return [...document.querySelectorAll('.celery-line time, .celery-message, .celery-log-heading')]
        .filter(element => contrast(element) < 4.5).slice(0, 3)
        .map(element => `${element.outerHTML}: ${contrast(element).toFixed(1)}`);
}"""


def test_log_is_filtered(site, runs, open_page):
    page = open_page(f'/plugins/celery/results/{runs["backup_configs"]}/log/')
    lines = page.locator('#celery-log-lines .celery-line')
    expect(lines.first).to_be_visible()
    everything = lines.count()
    page.locator('#celery-log-level').select_option(label='Warning and above')
    expect(lines.filter(has_text='Saved')).to_have_count(0)
    assert 0 < lines.count() < everything
    page.locator('#celery-log-q').fill('no answer')
    expect(lines).to_have_count(1)
    expect(lines).to_contain_text('No answer on port 22')
    expect(lines.get_by_role('link')).to_contain_text('ams-leaf-02')


def test_log_is_downloaded(site, runs, open_page):
    page = open_page(f'/plugins/celery/results/{runs["audit_devices"]}/')
    for kind, suffix in (('Text', '.log'), ('JSON', '.json')):
        page.get_by_role('button', name='Download').click()
        with page.expect_download() as download:
            page.get_by_role('link', name=kind, exact=True).click()
        assert download.value.suggested_filename.endswith(suffix)
        assert 'ams-rtr-01 is complete' in download.value.path().read_text()
