"""Names of workers: two words and a number, readable aloud."""

from __future__ import annotations

import secrets

_ADJECTIVES = (
    "amber azure brave bright calm clever cosy crisp dapper deft eager early fair fleet fond "
    "gentle glad golden grand happy hardy humble keen kind lively lucky mellow merry mild neat "
    "nimble noble plucky proud quick quiet ready rosy silent silver sleek smart snowy solid spry "
    "steady sturdy sunny swift tidy trusty vivid warm wise witty young"
).split()
_NOUNS = (
    "alder badger beaver birch bison cedar clover condor crane cricket dolphin eagle elm falcon "
    "fern finch fox gecko goose hare hawk hazel heron ibex iris jay juniper kestrel koala lark "
    "lemur lily linden lynx magpie maple marten mole moose newt oak otter owl panda pine plover "
    "poplar puffin quail raven robin seal sparrow stork swan thrush tulip walrus willow wren yew"
).split()


def draw_worker_name() -> str:
    """Return a random name such as brave-otter-48213."""
    number = secrets.randbelow(100_000)
    return f"{secrets.choice(_ADJECTIVES)}-{secrets.choice(_NOUNS)}-{number:05}"
