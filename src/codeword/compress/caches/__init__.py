"""What a network keeps between calls, as codes."""
