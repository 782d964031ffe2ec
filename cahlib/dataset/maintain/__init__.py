"""Checks and changes of a dataset that exists: verify, repair, purge, deduplicate, renumber."""
