"""Runs malformed inputs through decoders, and keeps what is to be told of each."""

import gc
import random
import tempfile
import time
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.decoders import Decoder, answer
from tests.fuzz.mutations import mutated

KEPT: int = 5
"""Crashes that are shown."""
WARM: int = 500
"""Inputs after which caches are full and memory is looked at for the first time."""


@dataclass
class Tally:
    """What became of a decoder's inputs."""

    inputs: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    crashes: int = 0
    shown: list[str] = field(default_factory=list)
    slowest_seconds: float = 0.0
    growth_bytes: int = 0

    def add(self, code: str | None, seconds: float) -> None:
        """One input was answered."""
        self.inputs += 1
        self.codes[code or "taken"] += 1
        self.slowest_seconds = max(self.slowest_seconds, seconds)

    def crash(self, number: int, error: BaseException, content: bytes) -> None:
        """One input was not."""
        self.inputs += 1
        self.crashes += 1
        if len(self.shown) < KEPT:
            self.shown.append(f"input {number}: {type(error).__name__}: {error}; {content[:200]!r}")


def resident_bytes() -> int:
    """What this process holds in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


def malformed(name: str, decoder: Decoder, *, seed: int, number: int) -> bytes:
    """The input of this number: the same whenever it is asked for."""
    chance = random.Random(zlib.crc32(f"{name}:{seed}:{number}".encode()))
    return mutated(chance, chance.choice(decoder.seeds))


def run(name: str, decoder: Decoder, *, inputs: int, seed: int) -> Tally:
    """Tries a decoder with so many inputs."""
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        folder = Path(place).resolve()
        decoder.prepare(folder)
        before = resident_bytes()
        for number in range(inputs):
            if number == WARM:
                before = resident_bytes()
            content = malformed(name, decoder, seed=seed, number=number)
            started = time.perf_counter()
            try:
                tally.add(answer(decoder.ask, folder, content), time.perf_counter() - started)
            except Exception as error:  # noqa: BLE001 -- whatever it is, it is what is looked for
                tally.crash(number, error, content)
        tally.growth_bytes = resident_bytes() - before
    return tally
