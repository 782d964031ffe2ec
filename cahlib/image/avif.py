"""Read the header of an AVIF file, and rewrite the file with nothing but its picture.

The picture is the primary item, with its tiles and its alpha channel. EXIF, XMP, thumbnails, gain
maps and the frames of a sequence are removed, as is everything between the boxes.

Layouts: ISO/IEC 14496-12 (boxes), 23008-12 (items), AV1 Image File Format 1.1, AV1 5.5 (sequences).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from cahlib.image.colours import is_valid_profile

AVIF_BRANDS = (b"avif", b"avis", b"mif1", b"msf1")  #: major brands of such files

_ALPHA = (b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha", b"urn:mpeg:hevc:2015:auxid:1")
#: Properties that decoders need, and others that are kept, with their length if that is fixed.
_NEEDED = {b"ispe", b"av1C", b"pixi", b"irot", b"imir", b"auxC", b"clap", b"a1op", b"a1lx", b"lsel"}
_OPTIONAL = {b"pasp": 8, b"clli": 4, b"mdcv": 24, b"colr": 0}
_MAX_ITEMS = 1024
_MAX_PIXEL_RATIO = 8  # items may have this many times the picture's pixels together: tiles, alpha
#: EXIF orientation by quarter turns: not mirrored, mirrored at axis 0, at axis 1.
_ORIENTATION = {0: (1, 4, 2), 1: (8, 5, 7), 2: (3, 2, 4), 3: (6, 7, 5)}


@dataclass(slots=True)
class _Item:
    kind: bytes
    data: list[bytes] = field(default_factory=list)
    #: name, content, and whether decoders must understand it
    properties: list[tuple[bytes, bytes, bool]] = field(default_factory=list)
    tiles: list[int] = field(default_factory=list)  #: the items it consists of
    alpha: list[int] = field(default_factory=list)  #: its alpha channel
    premultiplied: list[int] = field(default_factory=list)

    def get_property(self, name: bytes) -> bytes:
        """Return the content of its first property of this name, b"" if there is none."""
        return next((content for each, content, _ in self.properties if each == name), b"")

    @property
    def size(self) -> tuple[int, int]:
        """Its width and height."""
        return struct.unpack_from(">II", self.get_property(b"ispe"), 4)


def read_avif_header(data: bytes) -> tuple[int, int, int]:
    """Return the width, height and EXIF orientation.

    Raise ValueError, struct.error or IndexError if the file cannot be read.
    """
    items, primary = _read(data)
    item = items[primary]
    quarters, axis = item.get_property(b"irot"), item.get_property(b"imir")
    turned = _ORIENTATION[quarters[0] & 3 if quarters else 0]
    return *item.size, turned[1 + (axis[0] & 1) if axis else 0]


def strip_avif(data: bytes) -> bytes:
    """Return the file with the picture alone; raise as `read_avif_header` does."""
    items, primary = _read(data)
    kept = _picture_items(items, primary)
    width, height = items[primary].size
    coded = [items[each] for each in kept if items[each].kind == b"av01"]
    for item in coded:
        _check_sequence(b"".join(item.data), item.size)
    pixels = sum(item.size[0] * item.size[1] for item in coded)
    if pixels > _MAX_PIXEL_RATIO * max(width * height, 1 << 16):
        raise ValueError("the tiles are larger than the picture")
    return _write([items[each] for each in kept], {each: n for n, each in enumerate(kept, 1)})


def _boxes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name of each box, and where its content begins and ends."""
    while at + 8 <= end:
        length, name = struct.unpack_from(">I4s", data, at)
        start = at + 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, start)
            start += 8
        until = at + length if length else end
        if not start <= until <= end:  # truncated: what is missing is noticed later
            return
        yield name, start, until
        at = until


class _Fields:
    """Reads the numbers of a box in sequence."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at
        self.version, self.flags = data[at], data[at + 3]
        self._at += 4

    def number(self, size: int) -> int:
        self._at += size
        if self._at > len(self._data):
            raise IndexError("the box is truncated")
        return int.from_bytes(self._data[self._at - size : self._at], "big")

    def bytes(self, size: int) -> bytes:
        self._at += size
        return self._data[self._at - size : self._at]


def _read(data: bytes) -> tuple[dict[int, _Item], int]:
    """Return all items by number, and the number of the picture."""
    top = {name: (start, end) for name, start, end in _boxes(data, 0, len(data))}
    if b"meta" not in top:
        raise ValueError("there is no picture")
    start, end = top[b"meta"]
    meta = {name: (start, end) for name, start, end in _boxes(data, start + 4, end)}
    if not {b"pitm", b"iinf", b"iloc", b"iprp"} <= meta.keys():
        raise ValueError("there is no picture")
    fields = _Fields(data, meta[b"pitm"][0])
    primary = fields.number(4 if fields.version else 2)
    items = dict(_read_infos(data, *meta[b"iinf"]))
    if primary not in items or len(items) > _MAX_ITEMS:
        raise ValueError("there is no picture, or too many items")
    _read_locations(data, meta[b"iloc"][0], meta.get(b"idat", (0, 0)), items)
    if b"iref" in meta:
        _read_references(data, *meta[b"iref"], items)
    _read_properties(data, *meta[b"iprp"], items)
    return items, primary


def _read_infos(data: bytes, start: int, end: int) -> Iterator[tuple[int, _Item]]:
    fields = _Fields(data, start)
    for name, at, _ in _boxes(data, start + (8 if fields.version else 6), end):
        info = _Fields(data, at)
        if name == b"infe" and info.version in (2, 3):
            number = info.number(2 if info.version == 2 else 4)
            info.number(2)
            yield number, _Item(info.bytes(4))


def _read_locations(data: bytes, at: int, idat: tuple[int, int], items: dict[int, _Item]) -> None:
    fields = _Fields(data, at)
    sizes = fields.number(2)
    offset, length, base, index = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
    wide = 4 if fields.version == 2 else 2
    for _ in range(fields.number(wide)):
        item = items.get(fields.number(wide))
        method = fields.number(2) & 15 if fields.version else 0
        elsewhere = fields.number(2)
        origin = fields.number(base)
        for _ in range(fields.number(2)):
            fields.number(index if fields.version else 0)
            begin, size = origin + fields.number(offset), fields.number(length)
            first, last = idat if method == 1 else (0, len(data))
            whole = method < 2 and not elsewhere and size and first + begin + size <= last
            if item and item.kind in (b"av01", b"grid"):
                if not whole:
                    raise ValueError("the picture is in another file")
                item.data.append(data[first + begin : first + begin + size])


def _read_references(data: bytes, start: int, end: int, items: dict[int, _Item]) -> None:
    wide = 4 if data[start] else 2
    for name, at, _ in _boxes(data, start + 4, end):
        fields = _Fields(data, at - 4)
        source = fields.number(wide)
        targets = [fields.number(2 if wide == 2 else 4) for _ in range(fields.number(2))]
        if source not in items or not items.keys() >= set(targets):
            continue
        if name == b"dimg":
            items[source].tiles = targets
        if name == b"prem":
            items[source].premultiplied = targets
        for target in targets if name == b"auxl" else ():
            items[target].alpha.append(source)


def _read_properties(data: bytes, start: int, end: int, items: dict[int, _Item]) -> None:
    boxes = list(_boxes(data, start, end))
    known = [
        (name, data[first:last])
        for box, at, until in boxes
        if box == b"ipco"
        for name, first, last in _boxes(data, at, until)
    ]
    for box, at, _ in boxes:
        if box != b"ipma":
            continue
        fields = _Fields(data, at)
        wide, bits = (2, 15) if fields.flags & 1 else (1, 7)
        for _ in range(fields.number(4)):
            item = items.get(fields.number(4 if fields.version else 2))
            for _ in range(fields.number(1)):
                which = fields.number(wide)
                index, essential = which & ((1 << bits) - 1), bool(which >> bits)
                if item and index:
                    item.properties.append((*known[index - 1], essential))


def _picture_items(items: dict[int, _Item], primary: int) -> list[int]:
    """Return the numbers of the items of the picture, the primary one first."""
    kept = [primary]
    for number in kept:
        item = items[number]
        alpha = [
            a for a in item.alpha if items[a].get_property(b"auxC")[4:].rstrip(b"\0") in _ALPHA
        ]
        item.alpha = alpha[:1]
        kept += [each for each in (*item.tiles, *item.alpha) if each not in kept]
        if item.kind not in (b"av01", b"grid") or (item.kind == b"grid") != bool(item.tiles):
            raise ValueError("the picture is of an unknown kind")
        item.properties = [each for each in item.properties if _is_kept(*each)]
    return kept


def _is_kept(name: bytes, content: bytes, essential: bool) -> bool:
    """Return whether to keep a property; raise ValueError for an unknown essential one."""
    if name in _NEEDED:
        return True
    if essential and name not in _OPTIONAL:
        raise ValueError("the picture is of an unknown kind")
    if name == b"colr":
        if content.startswith((b"prof", b"rICC")):
            return is_valid_profile(content[4:])
        return content.startswith(b"nclx") and len(content) == 11
    return len(content) == _OPTIONAL.get(name, -1)


def _write(items: Sequence[_Item], numbers: dict[int, int]) -> bytes:
    properties = list(dict.fromkeys(p[:2] for item in items for p in item.properties))
    if len(properties) > 0x7FFF:
        raise ValueError("there are too many properties")
    infos, used, references, bodies = [], [], [], []
    for number, item in enumerate(items, 1):
        infos.append(_box(b"infe", struct.pack(">BxxxHH4sx", 2, number, 0, item.kind)))
        which = [properties.index(p[:2]) + 1 | p[2] << 15 for p in item.properties]
        used.append(struct.pack(f">HB{len(which)}H", number, len(which), *which))
        bodies.append(b"".join(item.data))
        links = [(b"dimg", number, item.tiles), (b"prem", number, item.premultiplied)]
        links += [(b"auxl", numbers[alpha], [number]) for alpha in item.alpha]
        for name, source, targets in links:
            ends = targets if name == b"auxl" else [numbers[t] for t in targets if t in numbers]
            if ends:
                content = struct.pack(f">HH{len(ends)}H", source, len(ends), *ends)
                references.append(_box(name, content))
    ipco = _box(b"ipco", *(_box(name, content) for name, content in properties))
    ipma = _box(b"ipma", struct.pack(">II", 1, len(items)), *used)
    boxes = [
        _box(b"hdlr", bytes(8), b"pict", bytes(13)),
        _box(b"pitm", struct.pack(">IH", 0, 1)),
        _box(b"iinf", struct.pack(">IH", 0, len(items)), *infos),
        *([_box(b"iref", bytes(4), *references)] if references else []),
        _box(b"iprp", ipco, ipma),
    ]
    ftyp = _box(b"ftyp", b"avif", bytes(4), b"avifmif1miaf")
    # iloc has a fixed length: 16 bytes, and 14 for each item
    at = len(ftyp) + 12 + sum(map(len, boxes)) + 16 + 14 * len(items) + 8
    places = []
    for number, body in enumerate(bodies, 1):
        places.append(struct.pack(">HHHII", number, 0, 1, at, len(body)))
        at += len(body)
    iloc = _box(b"iloc", struct.pack(">IHH", 0, 0x4400, len(items)), *places)
    return ftyp + _box(b"meta", bytes(4), *boxes, iloc) + _box(b"mdat", *bodies)


def _box(name: bytes, *content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + sum(map(len, content)), name) + b"".join(content)


def _check_sequence(data: bytes, size: tuple[int, int]) -> None:
    """Raise ValueError if the coded frames have another size than announced, without decoding."""
    at = 0
    while at < len(data):
        kind, extended, sized = data[at] >> 3 & 15, data[at] & 4, data[at] & 2
        at += 2 if extended else 1
        length, shift = len(data) - at, 0
        if sized:
            length = 0
            while True:
                length |= (data[at] & 127) << shift
                at, shift = at + 1, shift + 7
                if data[at - 1] < 128 or shift > 28:
                    break
        if kind == 1 and _sequence_size(data[at : at + min(length, 512)]) != size:
            raise ValueError("the frames have another size than the picture")
        at += length


class _Bits:
    """Reads numbers of given bit lengths in sequence."""

    def __init__(self, data: bytes) -> None:
        self._bits, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def take(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            raise ValueError("a sequence header is truncated")
        return self._bits >> self._left & ((1 << count) - 1)


def _sequence_size(header: bytes) -> tuple[int, int]:
    """Return the largest width and height of a sequence's frames."""
    take = (bits := _Bits(header)).take
    take(4)
    if take(1):  # reduced_still_picture_header
        take(5)
    else:
        _skip_operating_points(bits)
    wide, high = take(4) + 1, take(4) + 1
    return take(wide) + 1, take(high) + 1


def _skip_operating_points(bits: _Bits) -> None:
    """Skip the timing and operating points of a sequence header."""
    take, delay = bits.take, 0
    if take(1):
        take(64)
        if take(1):
            zeros = next((n for n in range(64) if take(1)), 0)
            take(zeros)
        if take(1):
            delay = take(5) + 1
            take(42)
    shown = take(1)
    for _ in range(take(5) + 1):
        take(12)
        if take(5) > 7:
            take(1)
        if delay and take(1):
            take(2 * delay + 1)
        if shown and take(1):
            take(4)
