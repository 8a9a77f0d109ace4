"""What the card of an endpoint says of the container that it runs in."""

from __future__ import annotations

from collections.abc import Iterator

from tfdeploy_magic.serving.containers import ContainerSeen
from tfdeploy_magic.serving.docker_engine import shortened
from tfdeploy_magic.views import html as pieces
from tfdeploy_magic.views import words


def facts(seen: ContainerSeen) -> Iterator[tuple[str, str]]:
    """Yield what it is, what it uses and what it may use, as names and values."""
    named = f"{seen.container} of {seen.image}" if seen.container else seen.image
    yield "container", shortened(f"{named}, {seen.state}")
    if seen.digest is not None:
        yield "digest", seen.digest
    if used := ", ".join(_used(seen)):
        yield "uses", used


def log(seen: ContainerSeen) -> str:
    """Return the last lines that it said as HTML, one click away; nothing where it said none."""
    return pieces.folded("last lines of its log", pieces.preformatted(_lines(seen))) if seen.log else ""


def plain_log(seen: ContainerSeen) -> Iterator[str]:
    """Yield the same in plain text."""
    yield from pieces.plain_section("last lines of its log", _lines(seen).split("\n") if seen.log else ())


def _lines(seen: ContainerSeen) -> str:
    return shortened("\n".join(seen.log))


def _used(seen: ContainerSeen) -> Iterator[str]:
    if seen.cpu_percent is not None:
        share = f"{seen.cpu_percent:.0f}% of a core"
        yield share if seen.cpu_limit is None else f"{share} of at most {100 * seen.cpu_limit:.0f}%"
    elif seen.cpu_limit is not None:
        yield f"at most {100 * seen.cpu_limit:.0f}% of a core"
    if seen.memory is not None:
        size = words.size(seen.memory)
        yield size if seen.memory_limit is None else f"{size} of at most {words.size(seen.memory_limit)}"
    elif seen.memory_limit is not None:
        yield f"at most {words.size(seen.memory_limit)}"
