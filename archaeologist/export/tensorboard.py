"""The timelines as TensorBoard's event files, by its own writer."""

from collections.abc import Mapping
from pathlib import Path

from archaeologist.artifacts.output import whole_folder
from archaeologist.export.extra import tool
from archaeologist.export.series import Scalars


def write_events(found: Mapping[int, Scalars], times: Mapping[int, float], output: Path) -> int:
    """Writes a folder that ``tensorboard --logdir`` opens; how many numbers.

    Args:
        found: From ``series.by_step``.
        times: From ``series.times``: the events' wall times.
        output: The folder; it must not be there, or be empty.

    Raises:
        ExtraMissing: tensorboard is not installed.
        UsageError: Something lies at the output.
        ArtifactUnwritable: The file system refuses.
    """
    writers = tool("tensorboard.summary.writer.event_file_writer", wanted_by="--format tensorboard")
    events = tool("tensorboard.compat.proto.event_pb2", wanted_by="--format tensorboard")
    summaries = tool("tensorboard.compat.proto.summary_pb2", wanted_by="--format tensorboard")
    with whole_folder(output) as temporary:
        writer = writers.EventFileWriter(str(temporary))
        try:
            for step, scalars in found.items():
                values = [summaries.Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
                writer.add_event(
                    events.Event(wall_time=times[step], step=step, summary=summaries.Summary(value=values))
                )
        finally:
            writer.close()
    return sum(len(scalars) for scalars in found.values())
