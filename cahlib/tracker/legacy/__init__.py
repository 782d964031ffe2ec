"""The protocol of Crawling@Home (2021), for the clients that people still have."""
