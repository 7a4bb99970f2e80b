"""What a build may be told: the options that build and publish share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from kserve.cli import options
from kserve.settings import Settings

if TYPE_CHECKING:
    from kserve.snapshots.build import Options

T = TypeVar("T")

Column = Annotated[
    list[str] | None,
    typer.Option("--column", metavar="OUR=THEIRS", help="The input's name of one of our columns; may be repeated."),
]
Topics = Annotated[
    Path | None, typer.Option("--topics", metavar="FILE", help="Topics that there are: topicId, topicSlug, ... as CSV.")
]
TopicEdges = Annotated[
    Path | None,
    typer.Option("--topic-edges", metavar="FILE", help="Edges between them: parentTopicSlug, childTopicSlug as CSV."),
]
ScoredAt = Annotated[
    str | None,
    typer.Option(
        "--scored-at",
        metavar="TIME",
        help="When the scores were made, such as 2026-11-21T04:00:00Z.",
        show_default="what the input's manifest says, else now",
    ),
]
MaxRejects = Annotated[int | None, options.setting("max_rejects")]
RejectsFile = Annotated[
    Path | None,
    typer.Option("--rejects", metavar="FILE", help="Where to list refused rows.", show_default="below DATA/rejects"),
]


class Told:
    """What a build was told, besides its input."""

    def __init__(
        self,
        column: Column = None,
        topics: Topics = None,
        topic_edges: TopicEdges = None,
        scored_at: ScoredAt = None,
        max_rejects: MaxRejects = None,
        rejects: RejectsFile = None,
    ) -> None:
        self.given = any((column, topics, topic_edges, scored_at, rejects)) or max_rejects is not None
        self.max_rejects = max_rejects
        self._files = {"topics": topics, "topic_edges": topic_edges, "rejects": rejects}
        self._rename = dict(map(_renaming, column or []))
        self._scored_at = None if scored_at is None else options.aware(scored_at, "--scored-at")

    def options(self, settings: Settings) -> Options:
        """As the builder takes it."""
        from kserve.snapshots.build import Options

        return Options(rename=self._rename, scored_at=self._scored_at, max_rejects=settings.max_rejects, **self._files)


def _renaming(text: str) -> tuple[str, str]:
    ours, _, theirs = text.partition("=")
    if not ours or not theirs:
        raise typer.BadParameter(f"{text!r} is not OUR=THEIRS, such as score=SCORE_COL", param_hint="--column")
    return ours, theirs


def flags_of(make: Callable[..., T], name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a command: for its parameter ``name`` it gets the options of ``make``, which makes it."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True)
        made = inspect.signature(make, eval_str=True).parameters
        parameters = [
            one for found in own.parameters.values() for one in (made.values() if found.name == name else [found])
        ]

        def run(**given: Any) -> None:
            command(**{name: make(**{one: given.pop(one) for one in made})}, **given)

        run.__doc__, run.__name__ = command.__doc__, command.__name__
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]  # typeshed lacks it
        return run

    return decorate
