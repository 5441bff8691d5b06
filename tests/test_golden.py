"""The numbers of the original networks are the files that their page describes."""

import hashlib
import re

from tests.support.paths import GOLDEN


def test_files_are_those_that_the_page_lists():
    listed = dict(re.findall(r"^\| (\S+) \| ([0-9a-f]{16}) \|$", (GOLDEN / "README.md").read_text(), re.M))
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16]
             for path in GOLDEN.iterdir() if path.suffix in (".npz", ".safetensors")}
    assert files == listed
