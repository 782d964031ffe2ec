"""From candidates to bytes: HTTP requests that respect hosts, their owners and the network."""
