"""Numbers with their nouns."""

from __future__ import annotations


def plural(number: float, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is 1."""
    written = f"{number:,}" if isinstance(number, int) else f"{number:g}"
    return f"{written} {noun}{'' if number == 1 else 's'}"


def verb(number: float, one: str = "is", many: str = "are") -> str:
    """Return the verb, or the pronoun, that agrees with a number."""
    return one if number == 1 else many
