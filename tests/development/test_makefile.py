"""What the Makefile guarantees its callers."""
import os
import re
import subprocess
import sys

import yaml

from development.stack.paths import ROOT


def test_python_of_choice():
    """`PYTHON=... make` chooses the Python of the venv: no variable of the Makefile overrides it."""
    make = subprocess.run(
        ['make', '--silent', '--eval', 'choice: ; @printenv PYTHON', 'choice'], cwd=ROOT, check=True, text=True,
        env={**os.environ, 'PYTHON': '/a/python'}, stdout=subprocess.PIPE,
    )
    assert make.stdout == '/a/python\n'


def test_hooks():
    """Git's hooks run what CI runs, except the tests."""
    makefile, ci = (ROOT / 'Makefile').read_text(), (ROOT / '.ci/run').read_text()
    [checks] = re.findall(r'^check: (.*?) ##', makefile, re.MULTILINE)
    [targets] = re.findall(r'^for target in (.*); do$', ci, re.MULTILINE)
    hooks = yaml.safe_load((ROOT / '.pre-commit-config.yaml').read_text())['repos'][0]['hooks']

    run = {hook['entry'].removeprefix('make ') for hook in hooks}
    assert 'check' in run
    assert run - {'check'} <= set(checks.split())
    assert set(targets.split()) == {*checks.split(), 'test', 'neighbours'}


def test_hook_runs_without_a_network(tmp_path):
    """No hook is downloaded: git can run them wherever the project can be worked on."""
    repositories = yaml.safe_load((ROOT / '.pre-commit-config.yaml').read_text())['repos']
    assert [repository['repo'] for repository in repositories] == ['local']
    assert subprocess.run(
        [sys.executable, '-m', 'pre_commit', 'validate-config', ROOT / '.pre-commit-config.yaml'], cwd=tmp_path,
    ).returncode == 0
