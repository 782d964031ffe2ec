"""Who does which shard."""
