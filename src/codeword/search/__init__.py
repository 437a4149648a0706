"""Search: an index over codes, its lists and segments, exact truth, tuning."""
