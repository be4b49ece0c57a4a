"""What `development/bootstrap.sh` guarantees its callers."""
import shutil
import subprocess
import sys

import pytest

from development.stack.paths import ROOT


@pytest.fixture
def checkout(tmp_path):
    """A checkout in a folder with an odd name and a complete venv; a Python that would make another one reports it."""
    root = tmp_path / "it's a (new) $HOME & more"
    for name in ('development/bootstrap.sh', 'pyproject.toml', 'development/netbox_example_plugin/pyproject.toml'):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    (root / '.venv' / 'bin').mkdir(parents=True)
    (root / '.venv' / 'bin' / 'python').symlink_to(sys.executable)
    wanted = subprocess.check_output(
        'cat pyproject.toml development/netbox_example_plugin/pyproject.toml | cksum', shell=True, cwd=root, text=True
    )
    (root / '.venv' / '.complete').write_text(wanted)
    python = tmp_path / 'python'
    python.write_text(f'#!/bin/sh\n[ "$1" != -m ] || {{ echo making; exit 7; }}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)

    def bootstrap():
        done = subprocess.run(
            [root / 'development' / 'bootstrap.sh'], text=True,
            env={'PATH': '/usr/bin:/bin', 'HOME': str(tmp_path), 'PYTHON': str(python)}, capture_output=True,
        )
        return done.returncode, done.stdout

    yield root, bootstrap


def test_complete(checkout):
    """Nothing is done twice."""
    root, bootstrap = checkout
    assert bootstrap() == (0, '')
    (root / '.venv' / '.place').write_text(f'{root}\n')
    assert bootstrap() == (0, '')


def test_moved(checkout):
    """In a checkout that was moved or copied, the venv's scripts would run another folder's Python and code."""
    root, bootstrap = checkout
    (root / '.venv' / '.place').write_text(f'{root}-before\n')
    assert bootstrap() == (7, 'making\n')
