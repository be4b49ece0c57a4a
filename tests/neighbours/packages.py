"""Packages for one test only, in a folder of the cache instead of the environment of all tests."""
import hashlib
import shutil
import subprocess
import sys

from development.stack.paths import CACHE
from development.stack.processes import locked

__all__ = (
    'digest',
    'fetched',
)


def digest(requirements):
    """Return a short text that identifies requirements, and the Python that they are for."""
    text = f'{sys.version_info[:2]} {sorted(requirements)}'
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def fetched(requirements):
    """Return the folder of packages (`name==version`), without their requirements: installed when first needed."""
    folder = CACHE / 'packages' / digest(requirements)
    with locked(folder.with_suffix('.lock')):
        if not folder.exists():
            draft = folder.with_suffix('.draft')
            shutil.rmtree(draft, ignore_errors=True)
            subprocess.run(
                [sys.executable, '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', '--no-deps',
                 '--target', draft, *requirements],
                check=True,
            )
            draft.rename(folder)
    return folder
