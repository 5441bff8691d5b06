"""Golden numbers and facts are the files that their page describes: where each is from, and that it has not changed."""

import hashlib
import re

from tests.support.paths import FACTS, GOLDEN

PAGE = GOLDEN / "README.md"
# Written by a test of this repository, and changed with the files that it is about.
OWN = "golden/resolved_configurations.json"


def files():
    """{folder/name: path} of all but the page itself."""
    paths = [path for folder in (GOLDEN, FACTS) for path in folder.iterdir() if path.is_file() and path != PAGE]
    return {f"{path.parent.name}/{path.name}": path for path in paths}


def test_every_file_has_its_origin_and_hash_on_the_page():
    listed = dict(re.findall(r"^\| (\S+) \| .+ \| ([0-9a-f]{16}) \|$", PAGE.read_text(encoding="utf-8"), re.M))
    found = {name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for name, path in files().items() if name != OWN}
    assert found == listed, f"see {PAGE}"


def test_the_table_of_configurations_says_how_it_is_made():
    assert OWN in files()
    assert f"`{OWN}`" in PAGE.read_text(encoding="utf-8")
