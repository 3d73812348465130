"""Explores every interleaving of a few coroutines, and every choice their world leaves open.

The coroutines are the production ones. They run without an event loop: whatever they await must
end in ``Tape.pause`` (a step that others may overtake) or return at once. A run follows a tape of
choices; the explorer tries all tapes, and stops a run where it reaches a state it has been in.
Two runs are in the same state when every coroutine has seen the same answers and the world
reports the same state, so nothing that follows can differ.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator, Hashable
from dataclasses import dataclass, field
from functools import cache
from types import coroutine
from typing import Any, Protocol

Actor = Coroutine[Any, Any, None]


class Tape:
    """The choices of one run: those prescribed, then always the first."""

    def __init__(self, prescribed: tuple[int, ...] = ()) -> None:
        self._prescribed = prescribed
        self.taken: list[tuple[int, int]] = []

    @property
    def beyond(self) -> bool:
        """Whether the prescribed choices are used up."""
        return len(self.taken) >= len(self._prescribed)

    def choose(self, options: int) -> int:
        """One of ``options``; with a single one there is nothing to note."""
        if options <= 1:
            return 0
        place = len(self.taken)
        choice = self._prescribed[place] if place < len(self._prescribed) else 0
        self.taken.append((choice, options))
        return choice

    def next(self) -> tuple[int, ...] | None:
        """The tape that a depth-first search tries next."""
        taken = list(self.taken)
        while taken:
            choice, options = taken.pop()
            if choice + 1 < options:
                return (*(x for x, _ in taken), choice + 1)
        return None


@coroutine
def pause() -> Generator[None, None, None]:
    """Let the explorer choose who goes on."""
    yield


class World(Protocol):
    """One run's world, built anew for each run."""

    def actors(self) -> dict[str, Actor]:
        """Fresh coroutines by name."""
        ...

    def events(self) -> dict[str, Callable[[], None]]:
        """What the environment may do now, by name."""
        ...

    def state(self) -> Hashable:
        """All that later steps can depend on, each coroutine's observations included."""
        ...

    def check(self) -> None:
        """The invariants. :raises AssertionError:"""
        ...


@dataclass(slots=True)
class Explored:
    """What an exploration covered: ``interleavings`` counts complete runs, exactly."""

    states: int = 0
    interleavings: int = 0
    failure: str = ""
    trace: tuple[str, ...] = ()


@dataclass(slots=True)
class _Graph:
    edges: dict[Hashable, dict[tuple[int, ...], Hashable]] = field(default_factory=dict)
    keys: dict[tuple[int, ...], Hashable] = field(default_factory=dict)
    """The state that the choices so far lead to, where a step begins."""

    def count_paths(self, root: Hashable) -> int:
        """Complete runs: paths from the root to states where nobody has anything left to do."""

        @cache
        def paths(node: Hashable) -> int:
            below = self.edges.get(node, {})
            return sum(paths(x) for x in below.values()) if below else 1

        return paths(root)


def explore(build: Callable[[Tape], World], *, limit: int = 2_000_000) -> Explored:
    """Try everything; stop at the first broken invariant.

    :param build: makes the world; it takes its own choices from the tape.
    :param limit: runs after which a world is refused as too large.
    """
    graph = _Graph()
    seen: set[Hashable] = set()
    tape: tuple[int, ...] | None = ()
    root: Hashable = None
    for _ in range(limit):
        if tape is None:
            return Explored(len(seen), graph.count_paths(root))
        run = Tape(tape)
        world = build(run)
        result, root = _run(world, run, graph, seen)
        if result is not None:
            result.states = len(seen)
            return result
        tape = run.next()
    raise RuntimeError(f"more than {limit} runs: the world is too large to explore")


def _run(
    world: World, tape: Tape, graph: _Graph, seen: set[Hashable]
) -> tuple[Explored | None, Hashable]:
    actors = world.actors()
    trace: list[str] = []
    steps = dict.fromkeys(actors, 0)

    def here() -> Hashable:
        # A hash alone: 64 bits keep thousands of states apart, and the states are large.
        return hash((world.state(), tuple(actors), tuple(steps.values())))

    root = key = graph.keys.get(()) or here()
    graph.keys[()] = root
    try:
        while actors or world.events():
            if tape.beyond:
                if key in seen:
                    break
                seen.add(key)
            start = len(tape.taken)
            events = world.events()
            names = [*actors, *events]
            name = names[tape.choose(len(names))]
            trace.append(name)
            if name in events:
                events[name]()
            else:
                steps[name] += 1
                _advance(actors, name)
            world.check()
            if tape.beyond:
                key = _arrive(tape, start, graph, here())
    except AssertionError as error:
        return Explored(failure=str(error), trace=tuple(trace)), root
    finally:
        for actor in actors.values():
            actor.close()
    return None, root


def _arrive(tape: Tape, start: int, graph: _Graph, following: Hashable) -> Hashable:
    """Note how a state was reached; those of the prescribed choices were noted in earlier runs."""
    choices = tuple(choice for choice, _ in tape.taken)
    before = graph.keys[choices[:start]]
    graph.edges.setdefault(before, {})[choices[start:]] = following
    graph.keys[choices] = following
    return following


def _advance(actors: dict[str, Actor], name: str) -> None:
    try:
        actors[name].send(None)
    except StopIteration:
        del actors[name]
