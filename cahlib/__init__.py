"""Common Crawl into image–text datasets, with a swarm of cheap servers and one GPU."""

__version__ = "0.1.0"
