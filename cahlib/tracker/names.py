"""Names: of workers, two words and a number, readable aloud; of people, as they choose them."""

from __future__ import annotations

import secrets
import unicodedata

import regex

from cahlib.tracker.models import Invalid

_HOW = (
    "amber azure brave bright calm clever cosy crisp dapper deft eager early fair fleet fond "
    "gentle glad golden grand happy hardy humble keen kind lively lucky mellow merry mild neat "
    "nimble noble plucky proud quick quiet ready rosy silent silver sleek smart snowy solid spry "
    "steady sturdy sunny swift tidy trusty vivid warm wise witty young"
).split()
_WHO = (
    "alder badger beaver birch bison cedar clover condor crane cricket dolphin eagle elm falcon "
    "fern finch fox gecko goose hare hawk hazel heron ibex iris jay juniper kestrel koala lark "
    "lemur lily linden lynx magpie maple marten mole moose newt oak otter owl panda pine plover "
    "poplar puffin quail raven robin seal sparrow stork swan thrush tulip walrus willow wren yew"
).split()


def draw() -> str:
    """A name such as brave-otter-48213."""
    number = secrets.randbelow(100_000)
    return f"{secrets.choice(_HOW)}-{secrets.choice(_WHO)}-{number:05}"


#: What cannot be seen: by Unicode's list, by category, and the blanks that are letters or symbols.
_INVISIBLE = regex.compile(
    r"[\p{Default_Ignorable_Code_Point}\p{C}\p{Z}\u2800\U0001D159--[ ]]", regex.V1
)
#: More marks on a letter than any language has: they run over the lines above and below.
_MARKS = regex.compile(r"\p{M}{3}")

#: Small letters that look like Latin ones, after case and compatibility are folded.
_LOOKS = {
    ord(pair[0]): pair[1]
    for pair in (
        "аa вb сc ԁd еe ғf ԍg һh нh іi јj кk ӏl мm пn оo рp ԛq гr ѕs тt цu ѵv ԝw хx уy "  # Cyrillic
        "αa βb ϲc εe ηn ιi κk νv οo ρp τt υu χx γy ωw "  # Greek
        "օo ոn սu հh ցg զq յj "  # Armenian
        "ıi ɑa ɡg ɩi ʟl 0o 1l |l"
    ).split()
}


def nickname(text: str, what: str = "nickname") -> str:
    """Return a nickname, or a team's name, as it is stored; raise Invalid."""
    name = " ".join(unicodedata.normalize("NFKC", text[:1000]).strip(" ").split(" "))
    if not 1 <= len(name) <= 40:
        raise Invalid(f"{what}: choose one of 1 to 40 characters.")
    if _INVISIBLE.search(name):
        raise Invalid(f"{what}: invisible characters are not allowed.")
    if _MARKS.search(unicodedata.normalize("NFD", name)):
        raise Invalid(f"{what}: at most two marks may stand on a letter.")
    if name.casefold().endswith("(unverified)"):
        raise Invalid(f"{what}: (unverified) is what the tracker adds to a name.")
    return name


def folded(name: str) -> str:
    """Return what a name looks like: the same for two that people take for each other."""
    small = unicodedata.normalize("NFKC", name).casefold().translate(_LOOKS)
    # a capital I is an l, and case is folded; so is what a narrow typeface runs together
    return small.replace("i", "l").replace("rn", "m").replace("vv", "w").replace(" ", "")
