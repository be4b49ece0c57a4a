"""Celery's tests, from its source distribution, and the packages that they need beside Celery."""

import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from ..stack.paths import STATE

__all__ = (
    'FOLDER',
    'PACKAGES',
    'get_packages',
    'get_tests',
)

FOLDER = STATE / 'celery-suite'
PACKAGES = ('pytest-timeout>=2.4', 'sqlalchemy>=2')


def get_tests():
    """
    Return the folder with the package `t` of Celery's tests, in the installed version.
    """
    celery = f'celery-{version("celery")}'
    if not (FOLDER / celery).exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=FOLDER) as directory:
            pip('download', '--no-binary', 'celery', '--no-deps', '--dest', directory, f'celery=={version("celery")}')
            with tarfile.open(next(Path(directory).glob('celery-*.tar.gz'))) as archive:
                # Not its package `celery`: the installed one is tested
                wanted = [
                    member for member in archive.getmembers()
                    if member.name.startswith(f'{celery}/t/') or member.name == f'{celery}/pyproject.toml'
                ]
                archive.extractall(directory, wanted, filter='data')
            shutil.move(Path(directory) / celery, FOLDER / celery)
    return FOLDER / celery


def get_packages():
    """
    Return the folder with the packages that only these tests import.
    """
    folder = FOLDER / 'packages'
    if not folder.exists():
        pip('install', '--no-deps', '--target', folder, *PACKAGES)
    return folder


def pip(*arguments):
    subprocess.run([sys.executable, '-m', 'pip', '--quiet', '--disable-pip-version-check', *arguments], check=True)
