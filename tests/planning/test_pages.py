"""The gigabytes that pages say `plan` counts."""

import re

import pytest

from ospnext_ms.planning import memory
from ospnext_ms.planning.workload import read_workload
from tests.support.paths import CONFIGS, ROOT


@pytest.mark.parametrize(("page", "file", "devices", "said"), [
    ("lora", "train/14b_lora", 8, r"`plan` says ([\d.]+) GB a device"),
    ("lora", "train/14b", 8, r"GB a device, against ([\d.]+) GB for all weights"),
    ("plan", "train/14b", 8, r"\(SSP 4 x Ulysses 2, weights over 8\), recompute \| ([\d.]+) GB"),
    ("plan", "generate/14b", 1, r"\| generating, 1 device \| ([\d.]+) GB"),
    ("plan", "generate/14b_offload", 1, r"14b_offload.yaml`\) \| ([\d.]+) GB"),
    ("generate", "generate/14b_offload", 1, r"\[plan\]\(plan.md\) counts ([\d.]+) GB there"),
    ("generate", "generate/14b", 1, r"GB there instead of ([\d.]+)"),
])
def test_what_pages_say_that_plan_counts(page, file, devices, said):
    text = " ".join((ROOT / "docs" / f"{page}.md").read_text().split())
    found = re.search(said, text)
    assert found, f"docs/{page}.md says nothing like {said!r}"
    total = memory.estimate(read_workload(CONFIGS / f"{file}.yaml", (), devices, None)).total
    assert float(found[1]) == pytest.approx(total / 1e9, abs=0.051)
