"""The compatibility page names the versions that the tests here use."""
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PAGE = (HERE.parents[1] / 'docs' / 'compatibility.md').read_text()
LINES = re.findall(r'^\|.*$', PAGE, re.MULTILINE)[2:]
ROWS = [[cell.strip() for cell in line.strip('|').split(' | ')] for line in LINES]
#: Pinned by a test that fetches them for itself: `name==version`.
PINNED = dict(
    pin for path in HERE.glob('*.py') for pin in re.findall(r"'([a-z0-9-]+)==([0-9.]+)'", path.read_text())
)
#: Come from the distribution, or with Celery itself.
SERVERS = {'Redis', 'RabbitMQ', 'PgBouncer', 'PostgreSQL'}


def used(package):
    """Return the version of a package that tests here use."""
    try:
        return version(package)
    except PackageNotFoundError:
        return PINNED[package]


@pytest.mark.parametrize('row', ROWS, ids=lambda row: row[0])
def test_version(row):
    """A row that links to PyPI names the version that is installed, or its beginning."""
    software, named, tried, *__ = row
    package = re.search(r'https://pypi\.org/project/([a-z0-9-]+)', software)
    assert tried
    if package:
        assert re.match(rf'{re.escape(named)}(?!\d)', used(package[1]))
    elif software.startswith(('Celery', '`celery')):
        assert version('celery').startswith(f'{named}.')
    else:
        assert software.split()[0] in SERVERS
        assert named


def test_every_package_is_named():
    """What the extra `neighbours` installs, and what tests pin, has its row."""
    linked = set(re.findall(r'https://pypi\.org/project/([a-z0-9-]+)', PAGE))
    assert {name for name in PINNED if name.startswith('netbox')} <= linked
