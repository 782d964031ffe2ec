"""A dataset for people: its summary, report, card, and the code that loads it."""
