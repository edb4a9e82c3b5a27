"""What each op costs: time and workspace, measured, known of its kernel, or estimated."""
