"""Parcels, in which images of a shard travel: a tar and a manifest, by disk or by storage."""
