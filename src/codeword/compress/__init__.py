"""A network made of codes: what its weights, activations and caches become, and what that costs."""
