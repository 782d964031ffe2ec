"""A run's status as HTML, for light and dark pages of any width.

All text from outside is escaped here. This module does not know how the HTML reaches the page.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from cahlib.core import status as lives
from cahlib.core.progress import describe_offline
from cahlib.core.records import DropReason, Stage
from cahlib.core.wording import plural
from cahlib.notebook import estimate
from cahlib.notebook.machine import MachineState
from cahlib.notebook.state import PanelState
from cahlib.run.disk_space import format_size
from cahlib.run.estimate import format_duration

#: Nodes that are shown at once; if there are more, they take turns.
_NODES = 8
_COLUMNS = "node", "place", "type", "state", "job", "links/s", "seen"
#: Characters of a caption that are shown.
_CAPTION = 90

STYLE_HTML = f"<style>{Path(__file__).with_name('view.css').read_text(encoding='utf-8')}</style>"


def note_html(terms: str) -> str:
    """Return the first line of the panel, with the style of all that follows."""
    return f'{STYLE_HTML}<div class="cah dim">{escape(terms)}</div>'


def message_html(sentence: str, *, bad: bool = False) -> str:
    """Return an answer to a click."""
    look = " bad" if bad else ""
    return _cah(f'<div class="said{look}">{escape(sentence)}</div>')


def plan_html(servers: str, sentences: Iterable[str]) -> str:
    """Return what will be made, as a table for people, and what to know about it."""
    table = f'<pre class="wide">{escape(servers)}</pre>' if servers else ""
    more = "".join(f"<div>{escape(each)}</div>" for each in sentences if each)
    return _cah(f"<h4>Plan</h4>{table}{more}")


def head_html(
    panel: PanelState, live: Mapping[str, Any], machine: MachineState, *, running: bool
) -> str:
    """Return the run's state, its totals, the slowest step, and its cost."""
    look = ' class="bad"' if panel.bad else ""
    lines = [f"<b{look}>{escape(panel.heading)}</b>"]
    if panel.lines:
        lines.append(f"<pre>{escape(chr(10).join(panel.lines))}</pre>")
    if shards := live.get("shards"):
        done = live["done"]
        failed = f' · <span class="bad">{live["failed"]:,} failed</span>' if live["failed"] else ""
        lines += [
            f'<div class="bar"><i style="width:{100 * done / shards:.1f}%"></i></div>',
            f"{done:,} of {shards:,} shards{failed}",
            f"<div>{' · '.join(_totals(live, machine, running=running))}</div>",
        ]
    if running:
        lines += [f'<div class="dim">{escape(each)}</div>' for each in _now(live, machine)]
        hints = describe_offline(live.get("offline") or ()), estimate.advice(live)
        lines += [f'<div class="hint">{escape(each)}</div>' for each in hints if each]
    return _cah("".join(lines))


def _totals(live: Mapping[str, Any], machine: MachineState, *, running: bool) -> Iterator[str]:
    """Yield what there is so far, and what is still to come."""
    yield f"{lives.status_stats(live).left[Stage.JUDGE]:,} pairs"
    if elapsed := live.get("elapsed"):
        yield f"{format_duration(elapsed)} in this launch"
    if running and (left := estimate.remaining_seconds(live)):
        yield f"about {format_duration(left)} to go"
    if machine.size:
        yield format_size(machine.size)
    if live.get("spent"):
        whole = estimate.projected_cost(live) if running else None
        money = escape(str(live.get("currency", "EUR")))
        now = f" ({money} {live['hourly']:.3f} an hour)" if running and live.get("hourly") else ""
        about = f", about {money} {whole:.2f} in all" if whole else ""
        yield f"{money} {live['spent']:.2f}{now}{about}"


def _now(live: Mapping[str, Any], machine: MachineState) -> Iterator[str]:
    """Yield what holds at this moment."""
    if live.get("state") == "running" and (step := estimate.bottleneck(live)):
        yield f"{step}; {_queues(live)}"
    if text := str(machine):
        yield text


def charts_html(live: Mapping[str, Any], *, running: bool) -> str:
    """Return a small chart of each rate over time; of an ended run, no rate is current."""
    points = live.get("history", ())
    if not points:
        return ""
    titles = ("links/s", "images/s", "kept pairs/s", "model busy")
    cards = [_chart(title, points, at, running=running) for at, title in enumerate(titles, 1)]
    return _cah(f'<div class="cah-row">{"".join(cards)}</div>')


def nodes_html(live: Mapping[str, Any], turn: int) -> str:
    """Return the table of nodes; many take turns."""
    every = live.get("nodes") or ()
    if not every:
        return ""
    pages = -(-len(every) // _NODES)
    first = turn % pages * _NODES
    title = f"Nodes {first + 1} to {min(first + _NODES, len(every))} of {len(every)}"
    columns = (*_COLUMNS, escape(str(live.get("currency", "EUR"))))
    head = "".join(f"<th>{name}</th>" for name in columns)
    rows = "".join(map(_node, every[first : first + _NODES]))
    return _cah(
        f'<h4>{title}</h4><div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def drops_html(live: Mapping[str, Any]) -> str:
    """Return why candidates did not become images, the most frequent reasons first."""
    dropped = lives.status_stats(live).dropped
    causes = sorted(
        (r for r in DropReason if r.stage is Stage.FETCH and dropped[r]), key=lambda r: -dropped[r]
    )
    if not causes:
        return ""
    most = dropped[causes[0]]
    rows = "".join(
        f"<span>{escape(each.phrase)}</span><span>{dropped[each]:,}</span>"
        f'<div class="bar"><i style="width:{100 * dropped[each] / most:.1f}%"></i></div>'
        for each in causes[:8]
    )
    return _cah(f'<h4>Failures by cause</h4><div class="losses">{rows}</div>')


def gallery_html(live: Mapping[str, Any], *, clear: bool) -> str:
    """Return the pairs judged last; unsafe ones are blurred unless ``clear``."""
    latest = live.get("latest") or ()
    parts = []
    for title, kept in (("Kept last", True), ("Dropped last", False)):
        if figures := "".join(figure_html(each, clear) for each in latest if each["kept"] is kept):
            parts.append(f'<h4>{title}</h4><div class="pairs">{figures}</div>')
    return _cah("".join(parts)) if parts else ""


def log_html(lines: Sequence[str]) -> str:
    """Return the last lines of the log."""
    if not lines:
        return ""
    return _cah(f"<h4>Log</h4><pre>{escape(chr(10).join(lines))}</pre>")


def text_line(heading: str, live: Mapping[str, Any], *, running: bool) -> str:
    """Return the run in one line, where no HTML is shown."""
    words = [heading]
    if shards := live.get("shards"):
        rates, kept = live["rates"], lives.status_stats(live).left[Stage.JUDGE]
        words += [
            f"{live['elapsed']:.0f} s",
            f"shards {live['done']}/{shards}"
            + (f", {live['failed']} failed" * bool(live["failed"])),
            f"{kept:,} pairs",
        ]
        if running and live["state"] == "running":
            words += [
                f"{rates['links']:.0f} links/s, {rates['images']:.0f} images/s",
                f"model busy {live['busy']:.0%}",
                describe_offline(live.get("offline") or ()) or estimate.bottleneck(live),
            ]
        if live.get("nodes"):
            money = f"{live.get('currency', 'EUR')} {live['spent']:.2f}"
            words.append(f"{plural(len(live['nodes']), 'node')}, {money}")
    return " · ".join(filter(None, words))


def _cah(inner: str) -> str:
    return f'<div class="cah">{inner}</div>'


def _queues(live: Mapping[str, Any]) -> str:
    names = {"parcels": "parcels", "judged": "judged images", "committed": "committed shards"}
    waiting = (
        f"{live['queues'][name][0]}/{live['queues'][name][1]} {what}"
        for name, what in names.items()
        if name in live.get("queues", {})
    )
    return f"waiting: {', '.join(waiting)}"


def _chart(title: str, points: Sequence[Sequence[float]], at: int, *, running: bool) -> str:
    """One curve of the rates; the points' first number is the time."""
    now, most = points[-1][at], max(max(point[at] for point in points), 1e-9)
    share = title == "model busy"
    most = 1.0 if share else most
    start, end = points[0][0], max(points[-1][0], points[0][0] + 1)
    line = " ".join(
        f"{200 * (point[0] - start) / (end - start):.1f} {40 - 40 * min(point[at] / most, 1):.1f}"
        for point in points
    )
    last = f"{200 * (points[-1][0] - start) / (end - start):.1f}"
    shown = (f"{now:.0%}" if share else _number(now)) if running else "–"
    top = "" if share else f' <span class="dim">top {_number(most)}</span>'
    return (
        f'<div class="cah-card"><div>{title}{top}</div><b>{shown}</b>'
        f'<svg viewBox="0 0 200 40" preserveAspectRatio="none" role="img" aria-label="{title} over '
        f'time"><path class="area" d="M0 40 L{line} L{last} 40Z"/><path class="line" d="M{line}"/>'
        "</svg></div>"
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _node(node: Mapping[str, Any]) -> str:
    """Return a node's row, and below it the last line of its log."""
    seen, job = node.get("seen"), str(node.get("job", ""))
    cells = (
        node.get("name", ""),
        node.get("location", ""),
        node.get("type", ""),
        node.get("state", ""),
        f"…{job[-18:]}" if len(job) > 18 else job,  # the end tells shards apart
        _number(node.get("rate") or 0),
        "" if seen is None else f"{seen:.0f} s ago",
        f"{node.get('cost') or 0:.2f}",
    )
    short = "".join(f"<td>{escape(str(cell))}</td>" for cell in cells)
    line = escape(str(node.get("line", "")))
    return f'<tr>{short}</tr><tr><td class="line" colspan="{len(_COLUMNS) + 1}">{line}</td></tr>'


def figure_html(pair: Mapping[str, Any], clear: bool) -> str:
    """Return a pair with its picture; an unsafe one is blurred unless ``clear``."""
    unsafe = pair["nsfw"] != "UNLIKELY"
    jpeg = pair["clear"] if unsafe and clear else pair["jpeg"]
    tag = f" {escape(pair['nsfw'])}{'' if clear else ', blurred'}" if unsafe else ""
    caption = pair["text"] if len(pair["text"]) <= _CAPTION else pair["text"][:_CAPTION] + "…"
    return (
        f'<figure><img src="data:image/jpeg;base64,{escape(jpeg)}" alt=""><figcaption>'
        f'<strong>{pair["similarity"]:.3f}</strong>{tag}<br><span dir="auto">{escape(caption)}'
        "</span></figcaption></figure>"
    )
