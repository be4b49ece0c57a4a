"""The tree and the timeline of a workflow in a real browser."""
import os
import subprocess
import sys

import pytest
from playwright.sync_api import expect

from .test_pages import PHONE, TOO_WIDE, browser, open_page, session  # noqa: F401 - fixtures

pytestmark = pytest.mark.browser

#: Ten simultaneous greetings, then something slow, then a last greeting.
START = """
import django; django.setup()
from celery import chain, chord
from netbox_celery.celery import app
from netbox_celery.models import CeleryResult
from netbox_example_plugin.tasks import hello_world, slow
chain(
    chord([hello_world.si(f'part {number}') for number in range(10)], slow.si(seconds=SECONDS)),
    hello_world.si('the end').set(netbox_name='The end'),
).apply_async()
print(CeleryResult.objects.latest('pk').pk)
"""


def start(site, seconds):
    """Start the workflow, and return the address of the page of one of its runs."""
    pk = subprocess.run(
        [sys.executable, '-c', START.replace('SECONDS', str(seconds))], env={**os.environ, **site.environ},
        capture_output=True, text=True, check=True,
    ).stdout.split()[-1]
    return f'/plugins/celery/results/{pk}/'


def test_workflow_is_watched(site, open_page):  # noqa: F811
    """Its steps appear and finish while the page is open, and a group that is unfolded by keyboard stays so."""
    page = open_page(start(site, 6))
    page.get_by_role('link', name='Workflow', exact=False).first.click()
    tree = page.locator('#celery-workflow')
    group = tree.locator('.celery-step-group')
    expect(group).to_contain_text('netbox_example_plugin:hello_world')
    expect(group).to_contain_text('10 Completed')
    expect(tree).to_contain_text('Running')
    toggle = group.get_by_role('button')
    expect(toggle).to_have_attribute('aria-expanded', 'false')
    steps = tree.locator('.celery-step:not(.celery-step-head, .celery-step-group)')
    expect(steps).to_have_count(1)
    toggle.focus()
    page.keyboard.press('Enter')
    expect(toggle).to_have_attribute('aria-expanded', 'true')
    expect(toggle).to_be_focused()
    expect(steps).to_have_count(11)
    expect(tree).to_contain_text('The end', timeout=20_000)
    expect(steps).to_have_count(12)
    expect(toggle).to_have_attribute('aria-expanded', 'true')
    expect(tree).not_to_have_attribute('hx-trigger', 'every 2s', timeout=10_000)


def test_workflow_is_cancelled(site, open_page):  # noqa: F811
    path = start(site, 60)
    page = open_page(f'{path}workflow/')
    tree = page.locator('#celery-workflow')
    expect(tree).to_contain_text('Running')
    page.get_by_role('button', name='Cancel Workflow').click()
    page.locator('#htmx-modal').get_by_role('button', name='Cancel Workflow').click()
    expect(page.locator('body')).to_contain_text('Cancelled 1 run of the workflow')
    page.goto(f'{site.url}{path}workflow/')
    expect(tree).to_contain_text('Upstream failed', timeout=15_000)
    expect(tree).to_contain_text('Revoked')
    expect(tree).not_to_have_attribute('hx-trigger', 'every 2s', timeout=10_000)


@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_workflow_fits_a_phone(site, open_page, scheme):  # noqa: F811
    page = open_page(f'{start(site, 0)}workflow/', viewport=PHONE, color_scheme=scheme)
    toggle = page.locator('.celery-step-group').get_by_role('button')
    toggle.click()
    expect(toggle).to_have_attribute('aria-expanded', 'true')
    assert page.evaluate(TOO_WIDE) == []
