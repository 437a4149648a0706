"""Neural blocks that more than one room needs."""
