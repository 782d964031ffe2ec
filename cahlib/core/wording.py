"""Numbers with their nouns."""

from __future__ import annotations


def plural(number: float, noun: str) -> str:
    """Return a number with its noun, which takes an s in the plural."""
    written = f"{number:,}" if isinstance(number, int) else f"{number:g}"
    return f"{written} {noun}{'' if number == 1 else 's'}"


def verb(number: float, one: str = "is", many: str = "are") -> str:
    """Return the verb, or the pronoun, that goes with a number of things."""
    return one if number == 1 else many
