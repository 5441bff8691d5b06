"""What a run needs - memory, arithmetic, communication - from its configuration alone. Framework-free."""
