"""A page on this machine to look through a dataset: filter, search, compare, and mark pairs."""
