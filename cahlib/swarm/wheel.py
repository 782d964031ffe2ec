"""The running cahlib as a wheel, and the versions of its dependencies installed here.

A node gets exactly this code: the wheel is zipped from the imported package itself, so no build
tools are needed and edits in a checkout count. Its version contains a digest of its content; its
requirements are those recorded when cahlib was last installed here.
"""

from __future__ import annotations

import base64
import re
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from hashlib import sha256
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from cahlib.core.errors import RunError

_PACKAGE = Path(__file__).parent.parent

_WHEEL = "Wheel-Version: 1.0\nGenerator: cahlib\nRoot-Is-Purelib: true\nTag: py3-none-any\n"

#: Suffixes of compressed files: deflating the demo's 11 MB cost 0.27 CPU seconds to save 7 %.
_UNCOMPRESSED = (".gz", ".safetensors", ".tar")

#: The earliest date in a zip.
_DATE = (1980, 1, 1, 0, 0, 0)


def build_wheel(folder: Path) -> Path:
    """Write the wheel of this cahlib into a folder; the same code gives the same file."""
    ours = _own_distribution()
    files = {path.relative_to(_PACKAGE.parent).as_posix(): path.read_bytes() for path in _files()}
    digest = sha256()
    for name, data in files.items():
        digest.update(f"{name} {len(data)}\n".encode() + data)
    version = f"{ours.version}+g{digest.hexdigest()[:12]}"
    about = f"cahlib-{version}.dist-info"
    metadata_text = ours.read_text("METADATA") or ours.read_text("PKG-INFO") or ""
    metadata = re.sub(r"(?m)^Version: .*$", f"Version: {version}", metadata_text, count=1)
    files[f"{about}/METADATA"] = metadata.encode()
    files[f"{about}/WHEEL"] = _WHEEL.encode()
    files[f"{about}/RECORD"] = _record(files, f"{about}/RECORD").encode()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"cahlib-{version}-py3-none-any.whl"
    # zipfile turns a Ctrl-C in the middle of a file into another error; a thread gets no Ctrl-C.
    with ThreadPoolExecutor(1) as packer:
        packer.submit(_pack, path, files).result()
    return path


def pip_constraints() -> str:
    """Return pip constraints that pin cahlib's requirements to the versions installed here."""
    found = {name: each.version for name, each in _pinned().items()}
    return "".join(
        f"{name}=={version}\n" for name, version in sorted(found.items()) if "+" not in version
    )


def required_pythons() -> list[str]:
    """Return the Python versions that the pinned packages require."""
    known = [each.metadata for each in _pinned().values()]
    return [each["Requires-Python"] for each in known if "Requires-Python" in each]


@cache
def _pinned() -> dict[str, Distribution]:
    """Return what is installed here of cahlib's requirements; to read it takes 50 CPU ms."""
    found: dict[str, Distribution] = {}
    waiting = list(_requirements(_own_distribution()))
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            needed = distribution(name)
        except PackageNotFoundError:
            continue  # for another platform or Python
        found[name] = needed
        waiting += _requirements(needed)
    return found


def _own_distribution() -> Distribution:
    try:
        return distribution("cahlib")
    except PackageNotFoundError as error:
        raise RunError("cahlib is not installed here; run `pip install -e .` first.") from error


def _files() -> list[Path]:
    return sorted(
        path
        for path in _PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    )


def _requirements(package: Distribution) -> Iterator[str]:
    """Yield the names of a package's requirements, without those of its extras."""
    for line in package.requires or ():
        if "extra ==" not in line and (match := re.match(r"[A-Za-z0-9._-]+", line)):
            yield re.sub(r"[-_.]+", "-", match.group()).lower()


def _record(files: dict[str, bytes], own: str) -> str:
    lines = []
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(data)}\n")
    return "".join(lines) + f"{own},,\n"


def _pack(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            how = zipfile.ZIP_STORED if name.endswith(_UNCOMPRESSED) else zipfile.ZIP_DEFLATED
            archive.writestr(zipfile.ZipInfo(name, _DATE), data, how)
