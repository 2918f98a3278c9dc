"""The fingerprint of a checkpoint's content: what a job's key rests on, because folder names are used again.

Made of sizes, header hashes and sampled bytes, so it costs a few milliseconds instead of reading the checkpoint. The
same content has the same one in every folder, at every time, hard-linked or copied, whatever its files are called.

Not detected: a change of bytes that no sample touches (a tensor of up to some 4 KB is sampled whole or nearly, a
large one at up to 16 places), a change in a tensor that is not read, and anything outside the weight files
(config.json, the tokenizer) but the scaling of an adapter. It is no defence against somebody who wants two checkpoints
to look alike.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Final

from archaeologist.checkpoints.index import CheckpointIndex, TensorEntry
from archaeologist.checkpoints.reader import Reader

SAMPLES_PER_FILE: Final = 1024
SAMPLES_PER_TENSOR: Final = 16
SAMPLE_BYTES: Final = 256

_DIGEST_BYTES: Final = 16


def fingerprint(index: CheckpointIndex, reader: Reader | None = None) -> str:
    """32 hexadecimal digits that stand for the checkpoint's content.

    Args:
        index: The checkpoint's.
        reader: Its open files; without one they are opened for this alone.

    Raises:
        CheckpointChanged: A file is no longer as the index found it.
    """
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES, person=b"fingerprint 1")
    by_file: dict[str, list[TensorEntry]] = {file: [] for file in index.files}
    for entry in index.tensors.values():
        if entry.size:
            by_file[entry.file].append(entry)
    for change in index.adapter.changes if index.adapter else ():
        # Of an adapter's configuration what gives its factors another meaning.
        digest.update(f"{change.weight} {change.scaling!r} {change.is_transposed}\n".encode())
    with Reader(index) if reader is None else contextlib.nullcontext(reader) as files:
        for file, entries in by_file.items():
            digest.update(f"{index.files[file]} {index.headers[file]}\n".encode())
            for entry, start in _samples(entries):
                sample = bytearray(min(SAMPLE_BYTES, entry.size - start))
                files.read(entry, start, memoryview(sample))
                digest.update(sample)
    return digest.hexdigest()


def _samples(entries: list[TensorEntry]) -> Iterator[tuple[TensorEntry, int]]:
    """Where a file is sampled: every tensor alike; with very many tensors, every n-th."""
    if not entries:
        return
    every = -(-len(entries) // SAMPLES_PER_FILE)
    chosen = entries[::every]
    each = min(SAMPLES_PER_TENSOR, SAMPLES_PER_FILE // len(chosen))
    for entry in chosen:
        room = max(0, entry.size - SAMPLE_BYTES)
        # The first and the last bytes are always among them, unless there is one sample only: then the middle.
        starts = {room // 2} if each == 1 else {room * number // (each - 1) for number in range(each)}
        for start in sorted(starts):
            yield entry, start
