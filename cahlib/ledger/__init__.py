"""Which shards are to be done: kept for one run, or by a tracker for many."""
