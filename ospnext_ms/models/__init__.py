"""The networks, as MindSpore Cells. Nothing here knows about ranks, YAML or files."""
