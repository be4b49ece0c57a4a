"""The compatibility page lists the versions that the tests here use."""
import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGE = (ROOT / 'docs' / 'compatibility.md').read_text()
LINK = re.compile(r'https://pypi\.org/project/([a-z0-9-]+)/')
#: Pinned by a test that fetches them for itself: `name==version`.
PINNED = dict(
    pin for path in HERE.glob('*.py') for pin in re.findall(r"'([a-z0-9-]+)==([0-9.]+)'", path.read_text())
)
#: Come from the distribution, or have versions of their own to name.
OTHERS = {'Redis', 'RabbitMQ', 'PgBouncer', 'netbox-celery', 'Ten'}


def rows(heading):
    """Return the rows of the first table after a heading, each a list of cells."""
    table = re.search(r'(?:^\|.*\n)+', PAGE[PAGE.index(f'{heading}\n'):], re.MULTILINE).group()
    return [[cell.strip() for cell in line.strip('|').split(' | ')] for line in table.splitlines()[2:]]


ROWS = rows('# Compatibility')
PLUGINS = rows('## Ten plugins together')


def used(package):
    """Return the version of a package that tests here use."""
    return PINNED.get(package) or version(package)


@pytest.mark.parametrize('row', ROWS + PLUGINS, ids=lambda row: row[0])
def test_version(row):
    """A row that links to PyPI has the installed versions, or their beginnings."""
    software, named = row[:2]
    packages = LINK.findall(software)
    if software.startswith(('Celery', '`celery')):
        packages = ['celery']
    if packages:
        for package, beginning in zip(packages, named.split(', '), strict=True):
            assert re.match(rf'{re.escape(beginning)}(?!\d)', used(package))
    else:
        assert re.match(r'[\w-]+', software).group() in OTHERS
        assert named


def test_rows():
    """Each row says what was tested, and what to know."""
    assert all(len(row) == 4 and all(row) for row in ROWS)
    assert len(PLUGINS) == 10


def test_every_package_is_named():
    """Each package of the extra `neighbours`, and each that tests download, has its row."""
    extra = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['optional-dependencies']['neighbours']
    installed = {re.match(r'[a-z0-9-]+', requirement).group() for requirement in extra}
    assert installed | {name for name in PINNED if name.startswith('netbox')} <= set(LINK.findall(PAGE))
