"""Measurements and their presentation: the comparison of quantizers, the Shannon bound, plots, self-contained HTML."""
