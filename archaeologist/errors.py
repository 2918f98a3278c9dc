"""The errors, each with a stable code and a message that names the value, the rule and the remedy.

The class says what the caller decides: ``PermanentError`` ends the job or refuses the message, ``TemporaryError``
hands it back for later, ``UsageError`` is for the person at the terminal. Codes appear in ``analysis.failed`` events,
dead letters and HTTP replies; one once published never changes its meaning.
"""

from typing import ClassVar


class ArchaeologistError(Exception):
    """Base of all: ``code`` is stable, ``str(error)`` is the sentence for people."""

    code: ClassVar[str] = "internal_error"


class PermanentError(ArchaeologistError):
    """Trying again gives the same; the message is refused or the job fails."""


class TemporaryError(ArchaeologistError):
    """Trying again later may succeed."""


class UsageError(ArchaeologistError):
    """The command line or a setting is wrong; exit code 2."""

    code = "usage"


# Messages.


class MessageMalformed(PermanentError):
    """The body is not JSON, too large or too deeply nested."""

    code = "message_malformed"


class MessageInvalid(PermanentError):
    """JSON, but a field is missing, has the wrong type or breaks a rule."""

    code = "message_invalid"


class JobTypeUnknown(PermanentError):
    """``job_type`` is none of the known ones."""

    code = "job_type_unknown"


class AnalysisUnknown(PermanentError):
    """An optional analysis is none of the known ones."""

    code = "analysis_unknown"


class StepUnknown(PermanentError):
    """Neither message, folder name nor trainer_state.json gives the step."""

    code = "step_unknown"


class PathOutsideRoot(PermanentError):
    """A resolved path lies under none of the allowed roots."""

    code = "path_outside_root"


class RequestIdReused(PermanentError):
    """Two different requests carry one id."""

    code = "request_id_reused"


class ReferenceUnavailable(PermanentError):
    """An explicitly named reference is not there."""

    code = "reference_unavailable"


class QueueFull(PermanentError):
    """The queue's hard ceiling is reached."""

    code = "queue_full"


# Checkpoints.


class CheckpointError(PermanentError):
    """A checkpoint cannot be read."""

    code = "checkpoint_unreadable"


class CheckpointMissing(CheckpointError):
    """The folder or file is not there."""

    code = "checkpoint_missing"


class CheckpointEmpty(CheckpointError):
    """The folder holds no weights."""

    code = "checkpoint_empty"


class CheckpointFormatUnsupported(CheckpointError):
    """The folder holds weights in a format that is not read."""

    code = "checkpoint_format_unsupported"


class ShardMissing(CheckpointError):
    """The index names a file that is not there."""

    code = "shard_missing"


class IndexInvalid(CheckpointError):
    """The index of a sharded checkpoint is not what it must be."""

    code = "index_invalid"


class HeaderInvalid(CheckpointError):
    """A safetensors header is truncated, too large, not JSON, or contradicts the file."""

    code = "header_invalid"


class PickleRefused(CheckpointError):
    """A pickle names what is no tensor; nothing of it was run."""

    code = "pickle_refused"


class ConfigInvalid(CheckpointError):
    """The checkpoint's config.json is not what it must be."""

    code = "config_invalid"


class DtypeUnsupported(CheckpointError):
    """A tensor's dtype is not one that is read."""

    code = "dtype_unsupported"


class CheckpointChanged(CheckpointError):
    """The checkpoint's bytes are no longer those that the job was made for."""

    code = "checkpoint_changed"


class CheckpointUnfinished(CheckpointError):
    """A checkpoint was waited for as long as the settings say, and is still being written."""

    code = "checkpoint_unfinished"


class CheckpointNotReady(TemporaryError):
    """A checkpoint is being written; its message comes again."""

    code = "checkpoint_not_ready"


class NothingComparable(CheckpointError):
    """Target and reference share no tensor of the same shape."""

    code = "nothing_comparable"


class BlockUnknown(CheckpointError):
    """The checkpoint has no block of this name."""

    code = "block_unknown"


class BlockMismatch(CheckpointError):
    """A block's tensors differ in name, dtype or shape between two checkpoints."""

    code = "block_mismatch"


class AdapterBaseUnfit(CheckpointError):
    """What is asked of an adapter needs its base model, which was not found or is another."""

    code = "adapter_base_unfit"


class ModelUnsupported(CheckpointError):
    """The model cannot be run, so its activations are not computed; weights and drift are."""

    code = "model_unsupported"


class PinImpossible(PermanentError):
    """The file system refuses the hard links that would keep a checkpoint."""

    code = "pin_impossible"


# Probes.


class ProbesMissing(PermanentError):
    """No probe set has this name."""

    code = "probes_missing"


class ProbesInvalid(PermanentError):
    """A probe set's file is not what it must be."""

    code = "probes_invalid"


class TokenizerMissing(PermanentError):
    """No tokenizer lies where one could be, or it cannot be loaded."""

    code = "tokenizer_missing"


class TokenizerUnfit(PermanentError):
    """The tokenizer does not belong to the model: its tokens have no row in the embedding."""

    code = "tokenizer_unfit"


class NoTokens(PermanentError):
    """The probes give no token to run."""

    code = "no_tokens"


# Jobs.


class DeviceUnavailable(PermanentError):
    """The settings name a GPU that torch cannot use."""

    code = "device_unavailable"


class GpuMemoryShort(TemporaryError):
    """The GPU has too little free memory now, and the settings say to wait for more."""

    code = "gpu_memory_short"


class ArtifactUnwritable(PermanentError):
    """The artifact's disk is full or read-only, or its folder forbidden."""

    code = "artifact_unwritable"


class ArtifactInvalid(PermanentError):
    """A file that should be an artifact does not decode as one."""

    code = "artifact_invalid"


class ArtifactMissing(PermanentError):
    """No artifact lies where one was asked for."""

    code = "artifact_missing"


class SketchThinned(ArtifactMissing):
    """The sketch was given up to keep all of them within their disk budget."""

    code = "sketch_thinned"


class ArchiveUnavailable(TemporaryError):
    """The WARM root is not mounted, or somebody else is archiving the campaign; what is archived is not lost."""

    code = "archive_unavailable"


class CampaignMissing(PermanentError):
    """No campaign of this name has a folder."""

    code = "campaign_missing"


class SummariesLate(TemporaryError):
    """The summaries could not be brought up to date in the time given; the next update goes on."""

    code = "summaries_late"


class ExportFailed(PermanentError):
    """Another tool's writer wrote nothing."""

    code = "export_failed"


class WatcherRunning(PermanentError):
    """Another process watches the folder for the same campaign."""

    code = "watcher_running"


class JobTimedOut(PermanentError):
    """The job ran longer than its limit."""

    code = "job_timed_out"


class JobCrashed(PermanentError):
    """The child process died: a signal, an exit code, no outcome."""

    code = "job_crashed"


class WorkerLost(PermanentError):
    """Three workers died while they ran the job."""

    code = "worker_lost"


class JobUnknown(PermanentError):
    """No job or request has this id."""

    code = "job_unknown"


class BrowserMissing(PermanentError):
    """No browser is installed that could make an image."""

    code = "browser_missing"


class BrowserFailed(PermanentError):
    """The browser made no image."""

    code = "browser_failed"


# Bus and settings.


class BusUnavailable(TemporaryError):
    """No server, no JetStream, or not allowed."""

    code = "bus_unavailable"


class MessageTooLarge(PermanentError):
    """The server's limit on the size of a message is lower than this one."""

    code = "message_too_large"


class TopologyMissing(TemporaryError):
    """A stream, consumer or bucket is not there."""

    code = "topology_missing"


class TopologyConflict(PermanentError):
    """A stream exists with settings that cannot be changed to ours."""

    code = "topology_conflict"


class KeysUnusable(PermanentError):
    """The roles' keys cannot be kept, or a file of theirs holds none."""

    code = "keys_unusable"


class ListenImpossible(PermanentError):
    """Nothing can listen on this address and port."""

    code = "listen_impossible"


# HTTP.


class ParameterInvalid(PermanentError):
    """A parameter of a request breaks a rule."""

    code = "parameter_invalid"


class HeroUnclear(PermanentError):
    """Several heroes have a campaign of this name and the request names none."""

    code = "hero_unclear"


class HostRefused(PermanentError):
    """The request came under a name that is not this server's."""

    code = "host_refused"


class OriginRefused(PermanentError):
    """A page of another site sent the request."""

    code = "origin_refused"


class TokenWrong(PermanentError):
    """A request that changes something came without the token, or with a wrong one."""

    code = "token_wrong"


class RouteMissing(PermanentError):
    """Nothing is served at this address, or not by this method."""

    code = "route_missing"


class BodyTooLarge(PermanentError):
    """The body of a request is larger than is read."""

    code = "body_too_large"


class MediaTypeUnsupported(PermanentError):
    """The body of a request is not declared as JSON."""

    code = "media_type_unsupported"


class StreamsFull(TemporaryError):
    """So many live streams are open that no other is."""

    code = "streams_full"


class ExtraMissing(UsageError):
    """A package of an optional extra is not installed."""

    code = "extra_missing"


class SettingInvalid(UsageError):
    """A setting's name or value is wrong."""

    code = "setting_invalid"


class MemoryCapped(PermanentError):
    """A job needs more memory than the settings let it have."""

    code = "memory_capped"


class DeviceUnknown(UsageError):
    """``devices.json`` has no entry for this machine, or more than one."""

    code = "device_unknown"


class InternalError(PermanentError):
    """A defect of ours."""

    code = "internal_error"


def known_codes() -> tuple[str, ...]:
    """Every code there is, sorted."""
    classes = (found for found in globals().values() if isinstance(found, type))
    return tuple(sorted({found.code for found in classes if issubclass(found, ArchaeologistError)}))


# Codes that come back from a file or another process.


def class_of(code: str) -> type[ArchaeologistError]:
    """The class that has a code; a later version's code becomes a PermanentError."""
    waiting = ArchaeologistError.__subclasses__()
    while waiting:
        kind = waiting.pop()
        if vars(kind).get("code") == code:
            return kind
        waiting.extend(kind.__subclasses__())
    return PermanentError
