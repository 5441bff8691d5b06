"""Where the repository's files lie."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "yaml_configs"
FACTS = ROOT / "tests" / "facts"
GOLDEN = ROOT / "tests" / "golden"
CASES = ROOT / "tests" / "cases"
TINY_WEIGHTS = ROOT / "tools" / "tiny_family" / "weights"
TOKENIZER = TINY_WEIGHTS / "tokenizer"
