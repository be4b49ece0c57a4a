"""What the Makefile promises to who calls it."""
import os
import subprocess

from development.stack.paths import ROOT


def test_python_of_choice():
    """`PYTHON=... make` says with which Python the venv is made: no variable of the Makefile's hides it."""
    make = subprocess.run(
        ['make', '--silent', '--eval', 'choice: ; @printenv PYTHON', 'choice'], cwd=ROOT, check=True, text=True,
        env={**os.environ, 'PYTHON': '/a/python'}, stdout=subprocess.PIPE,
    )
    assert make.stdout == '/a/python\n'
