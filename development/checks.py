"""
Checks of what is released: `python -m development.checks wheel`, `... compose`.

    wheel       the built wheel contains the whole package, and works in a venv without the checkout
    compose     what the schema of compose files cannot check
"""

import os
import re
import subprocess
import sys
import tempfile
import venv
from email.parser import Parser
from importlib.metadata import version
from pathlib import Path
from zipfile import ZipFile

import yaml
from readme_renderer import markdown

from .stack.paths import ROOT
from .stack.services import Services

PACKAGE = 'netbox_celery'


def wheel():
    with tempfile.TemporaryDirectory() as directory:
        directory = Path(directory)
        run(sys.executable, '-m', 'build', '--wheel', '--outdir', directory, ROOT)
        path, = directory.glob('*.whl')
        yield from missing_from(path)
        yield from broken_in_description(path)

        python = directory / 'venv' / 'bin' / 'python'
        venv.create(directory / 'venv', with_pip=True)
        run(python, '-m', 'pip', 'install', '--disable-pip-version-check', path, f'netbox=={version("netbox")}')
        run(python, '-m', 'pip', 'check')
        # Outside of the checkout, within NetBox: each module can be imported
        with Services('wheel', plugins=[PACKAGE]) as services:
            run(python, '-c', IMPORT_ALL, cwd=directory, env=services.instance.environ)
            run(directory / 'venv' / 'bin' / 'netbox', 'check', cwd=directory, env=services.instance.environ)


IMPORT_ALL = f'''
import importlib, pathlib, pkgutil, django
django.setup()
import {PACKAGE}
from importlib.metadata import version
assert version('netbox-celery') == {PACKAGE}.__version__, version('netbox-celery')
assert 'site-packages' in {PACKAGE}.__file__, {PACKAGE}.__file__
for module in pkgutil.walk_packages({PACKAGE}.__path__, '{PACKAGE}.'):
    if module.name == '{PACKAGE}.pytest_plugin':
        continue  # for pytest, which is not there
    importlib.import_module(module.name)
'''


def missing_from(path):
    files = subprocess.check_output(['git', 'ls-files', '-z', PACKAGE], cwd=ROOT, text=True).split('\0')
    shipped = set(ZipFile(path).namelist())
    for name in (*filter(None, files), f'{PACKAGE}/netbox-plugin.yaml'):
        if name not in shipped:
            yield f'The wheel lacks {name}'


def broken_in_description(path):
    """
    Render the description of the wheel like a package index, and yield what would not work there.
    """
    archive = ZipFile(path)
    name, = (name for name in archive.namelist() if name.endswith('.dist-info/METADATA'))
    metadata = Parser().parsestr(archive.read(name).decode())
    if not metadata.get_all('Project-URL'):
        yield 'The wheel has no URL of the project'
    if metadata['Description-Content-Type'] != 'text/markdown':
        yield f'The description is {metadata["Description-Content-Type"]}'
    page = markdown.render(metadata.get_payload()) or ''
    if '<h1' not in page or '<table' not in page:
        yield 'The description cannot be rendered'
    for address in re.findall(r'(?:href|src)="([^"]*)"', page):
        if not address.startswith(('https://', '#')):
            yield f'The description links to {address}, which is not there on the page of a package'


def compose():
    document = yaml.safe_load((ROOT / 'docker-compose.yml').read_text())
    services, volumes = document['services'], set(document.get('volumes', ()))
    for name, service in services.items():
        for other, condition in service.get('depends_on', {}).items():
            if other not in services:
                yield f'{name} depends on {other}, which is not there'
            elif condition['condition'] == 'service_healthy' and 'healthcheck' not in services[other]:
                yield f'{name} waits for {other} to be healthy, which says nothing about its health'
        for volume in service.get('volumes', ()):
            source = volume.split(':')[0]
            if not source.startswith(('.', '/')) and source not in volumes:
                yield f'{name} uses the volume {source}, which is not declared'
        if build := service.get('build'):
            if not (ROOT / build['context'] / build['dockerfile']).exists():
                yield f'{name} is built from {build["dockerfile"]}, which is not there'
    # Files that the image copies must exist, and must not be ignored
    for line in (ROOT / 'development' / 'Dockerfile').read_text().splitlines():
        if line.startswith('COPY') and '--from' not in line:
            for source in line.split()[1:-1]:
                if not (ROOT / source).exists():
                    yield f'The image copies {source}, which is not there'


def run(*command, cwd=ROOT, env=None):
    result = subprocess.run(
        [str(part) for part in command], cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, text=True,
    )
    if result.returncode:
        sys.exit(f'{" ".join(map(str, command[:4]))} failed:\n\n{result.stdout}{result.stderr}')


if __name__ == '__main__':
    problems = list({'wheel': wheel, 'compose': compose}[sys.argv[1]]())
    sys.exit('\n'.join(problems) if problems else 0)
