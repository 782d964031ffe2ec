"""The ledger: which shards remain to be done, kept by one run or leased from a tracker."""
