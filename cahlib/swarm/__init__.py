"""A swarm of servers, on which the scraping happens."""
