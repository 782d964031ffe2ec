"""Import torch and open_clip without what no model here needs; no other file imports them.

With torch 2.14 and open_clip 3.3 that takes 2.0 instead of 4.1 CPU seconds on a busy small server.
Garbage collection, which finds nothing in what is being imported, took 0.6. The rest are packages
that open_clip imports for the sake of some helper: `torchvision.ops`, which for one
function brings `torch._dynamo` and sympy (1.1), torchvision's models, and all of timm's.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from cahlib.core.own_process import uncollected

#: Accessing an attribute of one runs it: a timm tower is still built by timm.
_UNUSED = (
    "timm",
    "torchvision.datasets",
    "torchvision.io",
    "torchvision.models",
    "torchvision.ops",
)

_running = threading.RLock()


class _Deferred(ModuleType):
    """A package whose ``__init__`` runs at the first access to a name that it lacks.

    Its modules can be imported by their full names before that, unlike with
    `importlib.util.LazyLoader`.
    """

    def __getattr__(self, name: str) -> Any:
        # `inspect` and others look through all modules for names such as __file__.
        if name.startswith("__") and name != "__all__":
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        with _running:  # other threads wait until it has run; its own circular imports must not
            loader = self.__spec__.loader if self.__spec__ else None
            if isinstance(loader, _Later):
                loader.run(self)
            if isinstance(self, _Deferred):  # this very thread is running it
                raise AttributeError(f"module {self.__name__!r} has no attribute {name!r} yet")
        return getattr(self, name)


class _Later(Loader):
    """Create a package that its own loader fills later."""

    def __init__(self, own: Loader) -> None:
        self._own, self._runs = own, False

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Deferred(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass

    def run(self, module: ModuleType) -> None:
        """Fill the package, unless it is being filled."""
        if self._runs or module.__spec__ is None:
            return
        self._runs = True
        try:
            self._own.exec_module(module)
        except BaseException:
            self._runs = False  # the next access gets the same error, not half a package
            raise
        module.__spec__.loader = module.__loader__ = self._own
        module.__class__ = ModuleType


class _Finder(MetaPathFinder):
    """Find the deferred packages where Python would find them."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the package's own spec, with a loader that waits."""
        spec = PathFinder.find_spec(name, path, target) if name in self._names else None
        if spec is None or spec.loader is None:
            return None
        spec.loader = _Later(spec.loader)
        return spec


@contextmanager
def deferred(names: Collection[str]) -> Iterator[None]:
    """Defer these packages if they are imported in here, until an attribute is accessed."""
    finder = _Finder(names)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


with deferred(_UNUSED), uncollected():
    import open_clip
    import torch
    from open_clip.transformer import QuickGELU, ResidualAttentionBlock

__all__ = ["QuickGELU", "ResidualAttentionBlock", "deferred", "open_clip", "torch"]
