"""The REST guide is correct: its examples are run, one after another, as a reader would."""
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from development.stack.paths import ROOT

from .site import TOKEN, TOKEN_KEY

GUIDE = (ROOT / 'docs' / 'rest.md').read_text()


def examples(language):
    return re.findall(rf'```{language}\n(.*?)```', GUIDE, re.DOTALL)


@pytest.fixture
def environ(site):
    return {**os.environ, 'NETBOX': site.url, 'TOKEN': f'nbt_{TOKEN_KEY}.{TOKEN}', 'no_proxy': '*'}


@pytest.mark.skipif(not (shutil.which('curl') and shutil.which('jq')), reason='needs curl and jq')
def test_curl(site, environ):
    # Something to be found in the list
    site.wait(site.run('hello_world'))
    script = '\n'.join(examples('bash'))
    result = subprocess.run(['bash', '-euo', 'pipefail', '-c', script], env=environ, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert 'Checking 5 devices' in result.stdout
    assert '"completed"' in result.stdout


def test_pynetbox(environ):
    result = subprocess.run([sys.executable, '-c', examples('python')[0]], env=environ, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Completed {'gaps': 1, 'devices': 5}" in result.stdout
    assert 'Success ams-rtr-01 is complete' in result.stdout


def test_graphql(site):
    site.wait(site.run('audit_devices', delay=0))
    answer = json.load(site.open('/graphql/', {'query': examples('graphql')[0]}))
    assert answer['data']['celery_result_list'][0]['user']['username'] == site.username


def test_invalid_arguments(site):
    """The answer is the one that the guide shows."""
    from urllib.error import HTTPError

    with pytest.raises(HTTPError) as caught:
        site.rest(f'tasks/{site.task("audit_devices")}/run/', {'kwargs': {'site': 3, 'nope': 1}})
    assert caught.value.code == 400
    assert json.load(caught.value) == json.loads(next(e for e in examples('json') if 'nope' in e))
