"""Options that many commands share, and the settings that come of them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from archaeologist.settings import Settings

Config = Annotated[
    Path | None,
    typer.Option(
        "--config", help="Settings file; else ARCHAEOLOGIST_CONFIG, else ./archaeologist.toml.", metavar="FILE"
    ),
]
Root = Annotated[
    Path | None,
    typer.Option("--root", help="The folder that holds campaigns/; else ARCHAEOLOGIST_ROOT.", metavar="DIR"),
]
NatsUrl = Annotated[
    str | None, typer.Option("--nats-url", help="Address of the bus; else ARCHAEOLOGIST_NATS_URL.", metavar="URL")
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output, for scripts.")]


def _known(names: list[str] | None) -> list[str] | None:
    from archaeologist.analyses import known_analyses
    from archaeologist.errors import AnalysisUnknown, UsageError

    try:
        known_analyses(names or ())
    except AnalysisUnknown as error:
        msg = f"--with: {error}"
        raise UsageError(msg) from error
    return names


Analyses = Annotated[
    list[str] | None,
    typer.Option(
        "--with",
        help="Optional: spectra, attention, generations, htsr; may be repeated. Default: policy.analyses.",
        metavar="NAME",
        callback=_known,
    ),
]


def read_settings(
    *,
    config: Path | None = None,
    root: Path | None = None,
    nats_url: str | None = None,
    is_service: bool = False,
    is_worker: bool = False,
) -> "Settings":
    """The settings in force; the log goes to standard error from here on.

    Args:
        config: The ``--config`` option.
        root: The ``--root`` option.
        nats_url: The ``--nats-url`` option.
        is_service: Log as the settings say; else errors only, because a command's own words are enough.
        is_worker: Its name and roles may stand in ``worker.devices``.

    Raises:
        SettingInvalid: A wrong name or value.
        DeviceUnknown: ``worker.devices`` does not have this machine.
    """
    from msgspec.structs import replace

    from archaeologist import logs
    from archaeologist.settings import load

    overrides = {"root": str(root) if root else None, "bus.url": nats_url}
    settings = load(config=config, overrides=overrides, is_worker=is_worker)
    logs.configure(settings.log if is_service else replace(settings.log, level="error"))
    return settings
