"""The tracker: a service that leases the shards of a crawl to the workers of many people."""
