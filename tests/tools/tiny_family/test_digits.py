"""Digits without the package that they come with."""

import subprocess
import sys

from tests.support.paths import ROOT


def test_what_is_missing_and_how_to_get_it_is_said():
    code = ("import sys; sys.modules['sklearn'] = None; sys.argv = ['write_videos', '--output', 'x', '--count', '1']; "
            "import runpy; runpy.run_module('tools.tiny_family.write_videos', run_name='__main__')")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: the digits come with scikit-learn, which is not here")
    assert done.stderr.endswith("pip install -r requirements-test.txt\n")
