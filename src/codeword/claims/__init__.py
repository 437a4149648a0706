"""Published claims, re-checked: one file a system, one record, one runner. Nothing in the library imports this room."""
