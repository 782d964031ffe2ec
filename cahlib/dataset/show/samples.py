"""Choose the pairs that a report shows of a whole dataset, from those that its manifests hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from cahlib.dataset.manifest import GalleryItem, host_name

#: Pairs shown of each kind by chance, on each side of the threshold, and of a language or a host.
_SHOWN, _NEAR, _EACH = 24, 12, 4
#: Languages and hosts that are shown, and those of which pairs are kept until all are counted.
_GROUPS, _MOST = 6, 500


class GallerySamples:
    """Pairs by chance, beside the threshold, and of the most frequent languages and hosts."""

    def __init__(self) -> None:
        self._by_chance: dict[bool, list[GalleryItem]] = {True: [], False: []}
        self._near: dict[bool, list[GalleryItem]] = {True: [], False: []}
        self._counted = Counter[str]()  # languages in the random sample
        self._languages: dict[str, list[GalleryItem]] = {}
        self._hosts: dict[str, list[GalleryItem]] = {}

    def add(self, items: Iterable[GalleryItem]) -> None:
        """Consider a shard's pairs."""
        for each in items:
            near = self._near[each.kept]
            near.append(each)
            near.sort(key=lambda item: (item.similarity * (1 if item.kept else -1), item.uid))
            del near[_NEAR:]
            if each.near_threshold:
                continue
            drawn = self._by_chance[each.kept]
            drawn.append(each)
            drawn.sort(key=lambda item: item.uid)
            del drawn[_SHOWN:]
            if each.kept:
                self._counted[each.language] += 1
                _keep(self._languages, each.language, each)
                _keep(self._hosts, host_name(each.url), each)

    def by_chance(self, *, kept: bool) -> list[GalleryItem]:
        """Return a random but reproducible sample, the most similar first."""
        return sorted(self._by_chance[kept], key=lambda each: -each.similarity)

    def beside_threshold(self, *, kept: bool) -> list[GalleryItem]:
        """Return the pairs nearest to the threshold, the nearest first."""
        return self._near[kept]

    def by_language(self) -> dict[str, list[GalleryItem]]:
        """Return pairs of the most frequent languages; none if all have the same."""
        most = [language for language, _ in self._counted.most_common(_GROUPS) if language]
        return {each: self._languages[each] for each in most} if len(most) > 1 else {}

    def by_host(self, hosts: Mapping[str, int]) -> dict[str, list[GalleryItem]]:
        """Return pairs of the first of these hosts of which there are some."""
        return {
            each: self._hosts[each] for each in [h for h in hosts if h in self._hosts][:_GROUPS]
        }


def _keep(groups: dict[str, list[GalleryItem]], name: str, item: GalleryItem) -> None:
    if name in groups or len(groups) < _MOST:
        group = groups.setdefault(name, [])
        if len(group) < _EACH:
            group.append(item)
