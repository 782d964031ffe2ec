"""One shard's pairs become files."""
