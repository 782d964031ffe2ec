"""The protocol of Crawling@Home (2021), for clients that are still in use."""
