"""Tables of links in place of a crawl: their shards, and the rows of each"""
