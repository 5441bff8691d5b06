"""What a run can be told: YAML read into frozen dataclasses, one file a command."""
