"""Reads what a run left: streams and buckets with nats-py alone, files, pins and processes as the system shows them.

Nothing of the daemon is used, so that a defect in its reading cannot hide what its writing did.
"""

import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import nats
import nats.errors
from nats.aio.msg import Msg
from nats.js import JetStreamContext, api

from tests.faults.evidence import History, Letter, Plain, Sent, Told

BATTLE_LOG: Final = "BATTLE_LOG"
QUEUE: Final = "ARCHAEOLOGIST_JOBS"
DEAD: Final = "ARCHAEOLOGIST_DEAD"
HEARD: Final = {
    "CHECKPOINTS": "archaeologist-intake-checkpoints",
    "REQUESTS": "archaeologist-intake-requests",
}
BUCKETS: Final = {
    "requests": "archaeologist_requests",
    "jobs": "archaeologist_jobs",
    "campaigns": "archaeologist_campaigns",
}
ARTIFACT_FOLDERS: Final = ("layer_stats", "layer_drift", "superseded")
BATCH: Final = 500


async def read_history(url: str, root: Path, sent: list[Sent]) -> History:
    """Everything that the checker looks at."""
    history = History(sent=sent)
    client = await nats.connect(url)
    try:
        stream = client.jetstream(timeout=30)
        async for message in _messages(stream, BATTLE_LOG, ["analysis.>"]):
            history.log.append(_told(message))
        async for message in _messages(stream, DEAD, [">"]):
            history.letters.append(_letter(message))
        for name, bucket in BUCKETS.items():
            setattr(history, name, await _records(stream, bucket))
        history.campaigns = {key.removesuffix("/record"): record for key, record in history.campaigns.items()}
        info = await stream.stream_info(QUEUE, subjects_filter=">")
        history.queue = sorted(info.state.subjects or {})
        history.unheard = await unheard(stream)
    finally:
        await client.close()
    read_files(history, root)
    history.defects = sorted({defect for file in root.parent.glob("*.log") for defect in defects_in(file.read_text())})
    history.processes = processes_of(root)
    history.gpu_processes = sorted(set(_gpu_processes()) & set(history.processes))
    return history


async def unheard(stream: JetStreamContext) -> dict[str, int]:
    """Messages that intake has not acknowledged, by consumer."""
    found = {}
    for name, durable in HEARD.items():
        info = await stream.consumer_info(name, durable)
        found[durable] = (info.num_pending or 0) + (info.num_ack_pending or 0)
    return found


def defects_in(log: str) -> Iterator[str]:
    """Each error in a daemon's log that came with a traceback: nothing that is expected is logged so."""
    for line in log.splitlines():
        try:
            said = msgspec.json.decode(line)
        except msgspec.DecodeError:
            continue  # what a child wrote, or a line that a kill cut off
        if isinstance(said, dict) and said.get("level") == "error" and "exception" in said:
            yield f"{said['event']}: {said['exception'].strip().splitlines()[-1]}"


def read_files(history: History, root: Path) -> None:
    """The files of every campaign under the root."""
    campaigns = root / "campaigns"
    for path in sorted(campaigns.rglob("*")):
        if ".tmp" in path.name:
            history.strays.append(str(path))
        elif path.parent.name in ARTIFACT_FOLDERS and path.is_file():
            history.files[str(path)] = path.read_bytes()
        elif path.parent.name == "sketches" and path.is_file():
            history.sketches[str(path)] = path.read_bytes()
    for folder in sorted(campaigns.glob("*/*/analysis")):
        name = f"{folder.parent.parent.name}/{folder.parent.name}"
        files = [*folder.glob("*.json"), *folder.glob("summaries/*.json")]
        history.summaries[name] = {file.name: file.read_bytes() for file in files}
    for folder in sorted(campaigns.glob("*/*/.pins")):
        name = f"{folder.parent.parent.name}/{folder.parent.name}"
        history.pins[name] = sorted(pin.name for pin in folder.iterdir() if ".tmp" not in pin.name)


def processes_of(root: Path) -> dict[int, str]:
    """The daemons of a root and everything that they started: known by a variable that names it or leads into it.

    Jobs get no settings; what they all have is the kernels' cache in the root.
    """
    marks = (f"={root}\0".encode(), f"={root}/".encode())
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            environment = (folder / "environ").read_bytes() + b"\0"
            if any(mark in environment for mark in marks) and _is_alive(folder):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                found[int(folder.name)] = command.decode(errors="replace").strip()
        except OSError:
            continue  # it ended while it was looked at, or is somebody else's
    return found


def _is_alive(folder: Path) -> bool:
    return (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[0] != "Z"


def _gpu_processes() -> list[int]:
    """Processes that hold memory of a GPU; none where there is no GPU."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    asked = [program, "--query-compute-apps=pid", "--format=csv,noheader"]
    told = subprocess.run(asked, capture_output=True, text=True, check=False)
    return [int(line) for line in told.stdout.split() if line.isdigit()]


def _told(message: Msg) -> Told:
    message_id = (message.headers or {})["Nats-Msg-Id"]
    return Told(message.metadata.sequence.stream, message_id, msgspec.json.decode(message.data))


def _letter(message: Msg) -> Letter:
    headers = message.headers or {}
    return Letter(
        code=headers["Archaeologist-Error-Code"],
        subject=headers["Archaeologist-Subject"],
        stream=headers["Archaeologist-Stream"],
        sequence=int(headers["Archaeologist-Sequence"]),
        data=message.data,
    )


async def _records(stream: JetStreamContext, bucket: str) -> dict[str, Plain]:
    prefix = f"$KV.{bucket}."
    return {
        message.subject.removeprefix(prefix): msgspec.json.decode(message.data)
        async for message in _messages(stream, f"KV_{bucket}", [f"{prefix}>"])
        if message.data
    }


async def _messages(stream: JetStreamContext, name: str, subjects: list[str]) -> AsyncIterator[Msg]:
    """Every message on these subjects, in order; the server is left alone meanwhile."""
    config: Any = api.ConsumerConfig(filter_subjects=subjects, ack_policy=api.AckPolicy.NONE, mem_storage=True)
    info = await stream.add_consumer(name, config)
    reader = await stream.pull_subscribe_bind(consumer=info.name, stream=name)
    left = int(info.num_pending or 0)
    while left:
        for message in await reader.fetch(min(left, BATCH), timeout=10):
            left -= 1
            yield message
    await stream.delete_consumer(name, info.name)
