"""How the images of a shard travel: in a tar with a manifest, by disk or by storage."""
