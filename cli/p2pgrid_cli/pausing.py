"""``pause``, ``resume``, ``finish``: the owner has the machine back, and lends it again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from p2pgrid_cli.common import HomeOption, JsonOption, print_document, print_line, with_channel

if TYPE_CHECKING:
    from p2pgrid.wire.owner import OwnPause


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(pause)
    app.command()(resume)
    app.command()(finish)


def pause(
    span: Annotated[str | None, typer.Option("--for", metavar="SPAN", help="For how long, as 30m or 2h. Default: until resumed.")] = None,
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Give the processors back within two seconds. The node stays: it stores, keeps and leads."""
    from p2pgrid.model.sizes import parse_span_ms

    seconds = parse_span_ms(span) / 1000 if span is not None else 0.0
    _show(with_channel(home, lambda channel: channel.pause(seconds)), as_json)


def resume(as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Work again, though the owner is there or a term says otherwise now: that is set aside until it has passed, at most an hour."""
    _show(with_channel(home, lambda channel: channel.resume()), as_json)


def finish(as_json: JsonOption = False, home: HomeOption = None) -> None:
    """Take no new work, end what is leased, and then pause."""
    _show(with_channel(home, lambda channel: channel.finish()), as_json)


def _show(told: OwnPause, as_json: bool) -> None:
    if as_json:
        from p2pgrid_cli.documents.pausing import pause_of

        print_document(pause_of(told))
        return
    for line in pause_lines(told):
        print_line(line)


def pause_lines(told: OwnPause) -> list[str]:
    """The state in words, since when, and what ends it."""
    if not told.reason:
        return [f"{told.state}: this node takes work"]
    since_s = (told.wall_ms - told.since_ms) / 1000
    when = "from now on" if since_s < 2 else f"for {_span_text(since_s)}"
    lines = [f"{told.state} {when}: {told.sentence} ({told.reason})"]
    return lines + ([f"it ends {told.ends}"] if told.ends else [])


def pause_document(told: OwnPause) -> dict[str, object]:
    """The state for programs."""
    import msgspec

    from p2pgrid_cli.documents.pausing import pause_of

    document: dict[str, object] = msgspec.to_builtins(pause_of(told))
    return document


def _span_text(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
