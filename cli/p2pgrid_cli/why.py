"""``why``: the reason behind a state. What an id means is found out here; what there is to say of it comes from the node.

An id is looked for among what this node knows (jobs, peers, blobs); one that is given in full is also asked for in the grid.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from p2pgrid.errors import P2PGridError, RefusedError, UnreachableError, UsageError
from p2pgrid_cli.common import HomeOption, JsonOption, home_of, print_document, print_line, wall_ms, with_channel
from p2pgrid_cli.completion import complete_subject

if TYPE_CHECKING:
    from p2pgrid.client.channel import Channel
    from p2pgrid.wire.faces import Explanation
    from p2pgrid.wire.owner import WhyBlob

PREFIX_CHARS_MIN = 4
CANDIDATES_MAX = 8
UNIT_MAX = 1 << 62
KNOWN_HERE = "p2pgrid jobs, p2pgrid peers and p2pgrid blobs list what is known here"


class Subject(NamedTuple):
    """What is asked about. ``id`` is empty for this node; ``label`` is what others call it."""

    kind: str
    id: bytes
    unit: int = 0
    label: str = ""

    @property
    def text(self) -> str:
        """As people write it, with its id in full."""
        from p2pgrid.model.ids import to_text

        if not self.id:
            return "me"
        return f"{to_text(self.id)}/{self.unit}" if self.kind == "unit" else to_text(self.id)


class Answer(NamedTuple):
    """What there is to say. A blob has more to say to programs than a tree holds."""

    subject: Subject
    told: Explanation
    blob: WhyBlob | None = None


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(why)


def why(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="ID",
            help="A job, JOB/NUMBER for one of its units, a peer, a blob, or the beginning of one's id; or me, for this node.",
            autocompletion=complete_subject,
        ),
    ],
    as_json: JsonOption = False,
    home: HomeOption = None,
) -> None:
    """Say why something is as it is: why a job waits, a unit failed, a node does nothing, a blob has few copies.

    Each reason has a code in brackets (docs/reference/reasons.md), and what to do about it behind an arrow.
    """

    async def ask(channel: Channel) -> Answer:
        return await explained(channel, subject)

    try:
        answer = with_channel(home, ask)
    except P2PGridError as error:
        if subject.lower() != "me":
            raise
        from p2pgrid.services.explaining.offline import explain_without_node

        answer = Answer(Subject("me", b""), explain_without_node(home_of(home), wall_ms(), error=error))
    if as_json:
        _print_json(answer)
    else:
        _print_tree(answer)


async def explained(channel: Channel, text: str) -> Answer:
    """What the node has to say of a subject as people write it. Raises UsageError (ambiguous) or UnreachableError (unknown)."""
    if text.lower() == "me":
        return Answer(Subject("me", b""), await channel.explain("me"))
    name, slash, number = text.partition("/")
    found = await _named(channel, name)
    if slash:
        if not (number.isascii() and number.isdecimal()):
            raise UsageError(f"'{number}' is not the number of a unit", hint="for example: p2pgrid why 7xq3/12")
        found = [subject for subject in found if subject.kind == "job"]
        unit = min(int(number[:20]), UNIT_MAX)
        found = [subject._replace(kind="unit", unit=unit) for subject in found]
    if len(found) > 1 and len({subject.id for subject in found}) > 1:
        from p2pgrid_cli.render import printable

        listed = "; ".join(f"{subject.kind} {subject.text} ({printable(subject.label)})" for subject in found[:CANDIDATES_MAX])
        raise UsageError(f"'{text}' is the beginning of {len(found)} ids", hint=f"give more of the id: {listed}")
    answer = await _first(channel, found)
    if answer is None:
        raise UnreachableError(f"nobody who can be reached knows '{text}'", hint=KNOWN_HERE)
    return answer


async def _first(channel: Channel, found: list[Subject]) -> Answer | None:
    """What is told first: an id names one thing, and to find that the grid knows no such job or blob takes seconds."""
    import asyncio

    asking = [asyncio.ensure_future(_answer(channel, subject)) for subject in found]
    errors: list[P2PGridError] = []
    try:
        for told in asyncio.as_completed(asking):
            try:
                answer = await told
            except P2PGridError as error:
                errors.append(error)
            else:
                if answer is not None:
                    return answer
    finally:
        for asked in asking:
            asked.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
    if errors:
        raise errors[0]
    return None


async def _named(channel: Channel, text: str) -> list[Subject]:
    """What an id, or the beginning of one, can mean."""
    from p2pgrid.model.ids import short, to_text

    wanted = text.lower()
    if len(wanted) < PREFIX_CHARS_MIN:
        raise UsageError(f"'{text}' is too short", hint=f"give at least {PREFIX_CHARS_MIN} characters of the id, or 'me'")
    known = [Subject("job", line.job, label=line.name) for line in await channel.jobs()]
    known += [Subject("peer", peer.node, label=peer.info.name) for peer in (await channel.peers(refresh=False)).peers]
    known += [Subject("blob", line.blob, label=line.name or short(line.blob)) for line in await channel.blobs()]
    found = [subject for subject in known if to_text(subject.id).startswith(wanted)]
    return found or _in_full(text)


def _in_full(text: str) -> list[Subject]:
    """An id that is not known here can be anything."""
    from p2pgrid.model.ids import from_text

    try:
        whole = from_text(text)
    except UsageError:
        return []
    return [Subject(kind, whole) for kind in ("job", "blob", "peer")]


async def _answer(channel: Channel, subject: Subject) -> Answer | None:
    """None when nobody knows it as what it was taken for."""
    from p2pgrid.model.reasons import Reason

    if subject.kind == "blob":
        from p2pgrid.model.ids import BlobId
        from p2pgrid_cli.blobtables import why_blob_tree

        blob = await channel.why(BlobId(subject.id))
        return Answer(subject, why_blob_tree(blob), blob) if blob.state or blob.holders else None
    try:
        return Answer(subject, await channel.explain(subject.kind, subject.id, subject.unit))
    except UnreachableError:
        if subject.kind != "peer":
            raise
    except RefusedError as error:
        if error.reason != Reason.UNKNOWN_JOB or "no unit" in error.message:
            raise
    return None


def _print_tree(answer: Answer) -> None:
    from p2pgrid_cli.whytree import columns_here, lines_here, sayable_here, tree_lines

    told, subject = answer.told, answer.subject
    title = "this node" if subject.kind == "me" else f"{subject.kind} {subject.text}"
    for line in tree_lines(title, told.state, told.text, told.because, columns_here(), lines_here()):
        print_line(sayable_here(line))


def _print_json(answer: Answer) -> None:
    if answer.blob is not None:
        from p2pgrid_cli.documents.blobs import blob_reasons_of

        print_document(blob_reasons_of(answer.blob))
        return
    from p2pgrid_cli.documents.why import why_of

    print_document(why_of(answer.subject.text, answer.told))
