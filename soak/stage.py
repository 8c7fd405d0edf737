"""What actors and onlookers share: everything that they change or look at, and their threads."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from soak.failures import Ejection
from soak.history import History
from soak.keeper import Keeper
from soak.memory import MemoryCgroup
from soak.world import World

Dice = random.Random


class Stage:
    """Everything that actors change."""

    def __init__(self, world: World, keepers: Sequence[Keeper], memory: MemoryCgroup, disk: Path, seed: int) -> None:
        self.world = world
        self.history: History = world.history
        self.killed, self.kept = keepers
        self.memory = memory
        self.disk = disk
        self.stop = threading.Event()
        self.failed: list[BaseException] = []
        self.objections: list[tuple[int, str]] = []
        """Violations that onlookers found: time, and text."""
        self.ejections: list[Ejection] = []
        """What the sidecars have logged."""
        self._seed = seed

    @contextmanager
    def acting(self, actors: Iterable[Callable[[Stage, Dice], None]]) -> Iterator[None]:
        """Run actors while the block runs."""
        threads = [threading.Thread(target=self._act, args=(actor,), daemon=True) for actor in actors]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.stop.set()
            for thread in threads:
                thread.join(180)

    def _act(self, actor: Callable[[Stage, Dice], None]) -> None:
        dice = random.Random(f"{self._seed} {actor.__name__}")  # noqa: S311 - a schedule that can be repeated
        try:
            while not self.stop.is_set():
                actor(self, dice)
        except BaseException as error:  # noqa: BLE001 - the run ends with this error
            self.failed.append(error)
            self.stop.set()
