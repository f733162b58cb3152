"""One peer or one job in full: what it says of itself, what happened to it, and which command says more."""

from __future__ import annotations

from collections.abc import Iterable

from p2pgrid.model.ids import short
from p2pgrid.wire.faces import JobPicture
from p2pgrid.wire.owner import JobLine, PeerLine, Snapshot
from p2pgrid_cli.common import size_text
from p2pgrid_cli.dashboard.events import event_lines, events_about
from p2pgrid_cli.dashboard.header import sentence_of
from p2pgrid_cli.dashboard.jobs import STYLES as JOB_STYLES
from p2pgrid_cli.dashboard.jobs import percent, share_of, time_left
from p2pgrid_cli.dashboard.lines import Line, Part, bar, clock, cut_line, duration, milliseconds, padded, printable, rate
from p2pgrid_cli.dashboard.order import peer_word
from p2pgrid_cli.dashboard.peers import STYLES as PEER_STYLES
from p2pgrid_cli.dashboard.view import View

LABEL_CELLS = 10
LONG = 200
LISTED_MAX = 8
PICTURE_LINES_MIN = 6
EVENTS_KEPT = 4
"""Lines left for what happened, below the picture of a job."""


def _field(label: str, text: str, style: str = "") -> Line:
    return (Part(padded(label, LABEL_CELLS), "dim"), Part(f"  {text}", style))


def _listed(label: str, texts: Iterable[str]) -> list[Line]:
    """One line for each text, with the label before the first."""
    found = list(texts)
    lines = [_field(label if not index else "", text) for index, text in enumerate(found[:LISTED_MAX])]
    if len(found) > LISTED_MAX:
        lines.append(_field("", f"and {len(found) - LISTED_MAX} more", "dim"))
    return lines or [_field(label, "-")]


def peer_detail(line: PeerLine, snapshot: Snapshot, view: View, width: int) -> list[Line]:
    """All that is known of a peer, in lines of at most ``width``."""
    info, offer, status = line.info, line.info.offer, line.status
    word = peer_word(line, snapshot.wall_ms)
    state = f"{word}: {sentence_of(status.paused)} ({printable(status.paused)})" if status and status.paused else word
    since = duration((snapshot.wall_ms - line.since_ms) / 1000) if line.since_ms else ""
    seen = ("connected for " if status else "last seen ") + since + ("" if status else " ago") if since else "not met yet"
    lines = [
        (Part(printable(info.name) or "-", "bold accent"), Part(f"  {short(line.node)}")),
        _field("state", f"{state}, {seen}" if line.path != "self" else state, PEER_STYLES[word]),
        _field("path", f"{printable(line.path)}, round trip {milliseconds(line.rtt_s)}" if line.path else "none"),
    ]
    if status:
        lines += [
            _field("cores", f"{status.free_cores} of {offer.cores} spare, load {status.load:.2f}"),
            _field("units", f"{status.running} running, {status.queued} queued, {status.done} done since it started"),
            _field("storage", f"{size_text(status.storage_used_bytes)} of {size_text(offer.storage_bytes)} used"),
            _field("keeps", f"{status.jobs_kept} jobs; up {duration(status.uptime_s)}"),
        ]
    lines += [
        _field("lends", f"{offer.cores} cores, {size_text(offer.memory_bytes)} memory, {size_text(offer.storage_bytes)} storage"),
        _field("runs", ", ".join(printable(runtime) for runtime in offer.runtimes) or "nothing for others"),
        _field("machine", f"{printable(offer.platform) or '-'}, Python {printable(offer.python) or '-'}"),
        _field("version", printable(info.version) or "-"),
        _field("roles", ", ".join(printable(role) for role in info.roles) or "-"),
        _field("labels", ", ".join(printable(label) for label in offer.labels) or "-"),
        _field("trust", printable(line.trust) or "-"),
    ]
    lines += [_field("NAT", printable(line.nat))] if line.nat else []
    lines += [_field("favours", f"{line.favours:+.2f}")] if line.favours else []
    lines += _listed("addresses", [printable(str(address), LONG) for address in info.addresses])
    lines.append(_field("more", f"p2pgrid why {'me' if line.path == 'self' else short(line.node)}", "dim"))
    return _with_events(lines, snapshot, line.node, view, width)


def job_detail(job: JobLine, snapshot: Snapshot, picture: JobPicture | None, view: View, width: int, height: int) -> list[Line]:
    """All that is known of a job, in lines of at most ``width``: as ``watch`` draws it, where the node gave its ``picture``."""
    names = {peer.node: printable(peer.info.name) or short(peer.node) for peer in snapshot.peers}
    ends_in = duration((job.expires_ms - snapshot.wall_ms) / 1000)
    below = [
        _field("lead", names.get(job.lead, short(job.lead)) if job.lead else "not known"),
        _field("keepers", ", ".join(names.get(keeper, short(keeper)) for keeper in job.keepers) or "none"),
        _field("runtime", f"{printable(job.runtime) or '-'}; made {clock(job.created_ms, view.utc_offset_s)}, kept for {ends_in} more"),
        _field("more", f"p2pgrid watch {short(job.job)}, p2pgrid why {short(job.job)}", "dim"),
    ]
    if picture is not None:
        from p2pgrid_cli.watching.picture import Watched, draw

        drawn = draw(Watched(job, picture), width, max(PICTURE_LINES_MIN, height - len(below) - EVENTS_KEPT), view.glyphs)
        return _with_events([*drawn, (), *below], snapshot, job.job, view, width)
    ranked = sorted(job.workers.items(), key=lambda item: -item[1])
    lines = [
        (Part(printable(job.name) or "-", "bold accent"), Part(f"  {short(job.job)}")),
        _field("state", f"{printable(job.state)}, {printable(job.role) or 'known'} here", JOB_STYLES.get(job.state, "")),
        _field("progress", f"{bar(share_of(job), 20, view.glyphs)} {percent(share_of(job))}, {time_left(job)} left"),
        _field("units", f"{job.done} done, {job.failed} failed, {job.disputed} disputed of {job.units}; {rate(job.rate)}/s"),
        *_listed("nodes", [f"{names.get(node, short(node))}: {units} units" for node, units in ranked]),
        *below,
    ]
    return _with_events(lines, snapshot, job.job, view, width)


def _with_events(lines: list[Line], snapshot: Snapshot, key: bytes, view: View, width: int) -> list[Line]:
    about = events_about(snapshot, key)
    shown = [cut_line(line, width, view.glyphs.ellipsis) for line in lines]
    if about:
        shown += [(), (Part("what happened", "bold"),), *event_lines(about[-LISTED_MAX:], view, width)]
    return shown
