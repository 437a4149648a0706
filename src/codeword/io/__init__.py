"""Files: written whole or not at all, read with suspicion. Importing this package imports no torch."""
