"""From candidates to bytes: polite HTTP requests that honour robots.txt and opt-outs."""
