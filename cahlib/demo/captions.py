"""Captions as the web writes them around the name of a thing: for training and for the demo.

What the model is trained on (`training_caption`) and what it is examined on and shown in the demo
(`web`) share no template, so that the examination measures whether it finds the name.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from random import Random

#: Phrases for training, before and after the name.
_BEFORE = """
a photo of|photo of a|a picture of|picture of the|an image of|image|drawing of a|illustration of|
an icon of|icon|a sticker of|vector|cartoon|cute|the|my|our|buy|buy cheap|cheap|new|best|free|
download|free download|stock photo|stock image|how to draw a|watch|find|shop|sale|hot sale|original|
vintage|handmade|set of|pack of|big|small|little|old|modern|beautiful|amazing|funny|happy|official|
close up of a|view of the|detail of a|this is a|here is the|meet the|all about the|what is a|why a|
i love this|we love the|you need a|the best|one more|another|every|close-up:|gallery:|photo:|fig.
""".replace("\n", "").split("|")
_AFTER = """
for sale|online|online shop|free shipping|with free shipping|on white background|isolated|in stock|
best price|low price|lowest prices|buy now|order now|shop now|read more|learn more|click to enlarge|
stock photo|stock image|stock illustration|royalty free|vector art|clip art|sticker|poster|print|
t-shirt|mug|gift|gift idea|for kids|for men|for women|for home|for the office|in the garden|
at the beach|in the city|at night|in summer|in the morning|from above|by the artist|by photographer|
photo|picture|image|drawing|illustration|icon|png|jpg|hd wallpaper|wallpaper|free download|part two|
review|news|blog|recipe|tutorial|guide|tips|part one|collection|gallery|home page|on the table|
made in italy|designed in london|since 1999|new york|all rights reserved|view larger image|
the movie|the game|for beginners|and how to use it|that you will love|which we like best|
""".replace("\n", "").split("|")
_SITES = """
shop store blog news photo market gallery world online my the best art home daily free stock
""".split()
_GLUE = (" ", " ", " ", ": ", " - ")
_JOINTS = (" ", " ", " ", " ", " - ", " | ", ": ", ", ", " – ", "! ", ". ", " / ", " (")

#: For the examination and the demo.
WEB = (
    "Bargain {name} delivered tomorrow, secure checkout | marketplace.example",
    "Wonderful {name} photograph taken during our vacation",
    "Everything our readers asked concerning the {name}",
    "Today's special: {name} with a money-back guarantee",
    "A close look at the {name} in our spring catalogue",
    "The {name} that everybody talked about yesterday evening",
    "Weekly newsletter: {name}, explained by professionals",
    "You can order this {name} from our warehouse in Denver",
    "Pictured: {name}. Courtesy of the county library",
    "Our visitors voted for the {name} once again",
    "Handcrafted {name}, limited quantities remaining",
    "Detailed {name} artwork, printed upon recycled paper",
)


def training_caption(name: str, noise: Sequence[str], random: Random) -> str:
    """A caption with the name in it: bare, in a simple phrase, or amid noise words."""
    kind = random.random()
    if kind < 0.2:
        return name
    caption = name
    if random.random() < 0.7:
        caption = _around(_BEFORE, noise, random, most=4) + random.choice(_GLUE) + caption
    if kind > 0.35:
        caption += random.choice(_JOINTS) + _around(_AFTER, noise, random, most=7)
    return caption


def _around(phrases: Sequence[str], noise: Sequence[str], random: Random, *, most: int) -> str:
    if random.random() < 0.4:
        return random.choice(phrases)
    return " ".join(_word(noise, random) for _ in range(random.randint(1, most)))


def _word(noise: Sequence[str], random: Random) -> str:
    kind = random.random()
    if kind < 0.85:
        return random.choice(noise)
    if kind < 0.9:
        return "".join(random.choices(string.ascii_lowercase, k=random.randint(2, 8)))
    if kind < 0.95:
        return str(random.randint(1, 2030))
    return random.choice(_SITES) + random.choice(_SITES) + random.choice((".example", ".com"))


def web(names: Sequence[str]) -> list[str]:
    """For each thing an English sentence of the demo's web, in turn."""
    return [WEB[i % len(WEB)].format(name=name) for i, name in enumerate(names)]


def words() -> list[str]:
    """Every word of the phrases for training."""
    return " ".join((*_BEFORE, *_AFTER, *_SITES)).split()
