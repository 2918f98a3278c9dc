"""``contracts export``: the JSON Schemas and the AsyncAPI document as files."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="The contracts: messages, records, artifacts.")


@app.callback()
def contracts() -> None:
    """The contracts: messages, records, artifacts."""


@app.command()
def export(
    output: Annotated[
        Path, typer.Option("--output", help="Folder to write to; made if it is missing.", metavar="DIR")
    ] = Path("schemas"),
) -> None:
    """Writes the JSON Schema of every message and artifact, and asyncapi.json."""
    from archaeologist.errors import ArtifactUnwritable
    from contracts.documents import write

    try:
        written = write(output)
    except OSError as error:
        msg = f"schemas cannot be written to {str(output)!r}: {error}; name a writable folder with --output"
        raise ArtifactUnwritable(msg) from error
    for path in written:
        typer.echo(path)
