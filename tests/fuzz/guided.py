"""``python -m tests.fuzz.guided DECODER [libFuzzer's options]``: inputs that new branches of a decoder lead to.

atheris steers by which branches an input reaches. It is no dependency: ``pip install atheris`` where this is run. The
first input that is not answered with a code ends the run and is written to a file; ``-max_total_time=600`` bounds it.
"""

import importlib
import sys
import tempfile
from pathlib import Path
from typing import Any


def main() -> None:
    """Runs one decoder until an input crashes it or the time is over; does not return."""
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["archaeologist", "contracts"]):
        from tests.fuzz.decoders import answer, decoders  # noqa: PLC0415 -- so that what it imports is watched

    known = decoders()
    if len(sys.argv) < 2 or sys.argv[1] not in known:
        sys.exit(f"name a decoder: {', '.join(known)}")
    decoder = known[sys.argv.pop(1)]
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
        folder, corpus = Path(place).resolve() / "files", Path(place) / "seeds"
        folder.mkdir()
        corpus.mkdir()
        decoder.prepare(folder)
        for number, seed in enumerate(decoder.seeds):
            (corpus / str(number)).write_bytes(seed)
        atheris.Setup([*sys.argv, str(corpus)], lambda content: answer(decoder.ask, folder, content))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
