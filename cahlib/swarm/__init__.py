"""Where the scraping happens."""
