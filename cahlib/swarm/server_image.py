"""The image that nodes are created from: one whose Python runs the pinned versions.

It knows the Python of each image, and no cloud.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from packaging.specifiers import SpecifierSet

from cahlib.core.errors import ConfigError

#: Images by the version of their Python.
IMAGES = {"3.11": "debian-12", "3.13": "debian-13"}

_TAG = re.compile(r"-cp3(\d+)-(?!abi3)")


def choose_image(
    needs: Iterable[str],
    wheels: Iterable[Path] = (),
    *,
    here: tuple[int, int] = sys.version_info[:2],
) -> str:
    """Return the image for pinned packages, by the Python that each requires (`>=3.10`).

    The pinned versions were chosen for the Python ``here``, so the nearest one comes first. Wheels
    of a wheelhouse must be for the Python of the image. Raise ConfigError if no image is suitable.
    """
    specified, wheels = [SpecifierSet(each) for each in needs], list(wheels)
    tags = {f"3.{match[1]}" for each in wheels if (match := _TAG.search(each.name))}
    fit = [
        version
        for version in sorted(IMAGES, key=lambda each: abs(int(each[2:]) - here[1]))
        if all(each.contains(f"{version}.5") for each in specified) and tags <= {version}
    ]
    if not fit:
        raise ConfigError(
            f"wheelhouse: its wheels are for Python {', '.join(sorted(tags))}, but nodes "
            f"have Python {' or '.join(IMAGES)}; fill it for one of these."
            if tags
            else "the packages installed here do not run on any Python that nodes can have "
            f"({', '.join(IMAGES)}); reinstall cahlib with one of these."
        )
    return IMAGES[fit[0]]
