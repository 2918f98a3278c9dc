"""``restore-block``: a checkpoint with blocks put back to a reference's values; no bus needed."""

from pathlib import Path
from typing import Annotated

import typer

from archaeologist.cli.options import AsJson


def restore_block(
    checkpoint: Annotated[Path, typer.Argument(help="The checkpoint, in safetensors.")],
    block: Annotated[
        list[str], typer.Option("--block", help="Name as in the artifacts; may be repeated.", metavar="NAME")
    ],
    reference: Annotated[
        Path, typer.Option("--reference", help="The checkpoint that the blocks are taken from.", metavar="CHECKPOINT")
    ],
    output: Annotated[Path, typer.Option("--output", help="A folder that is not there yet.", metavar="DIR")],
    as_json: AsJson = False,
) -> None:
    """Writes a checkpoint with these blocks taken from the reference, to be evaluated again."""
    from archaeologist.cli import console
    from archaeologist.restoration import restore_blocks

    done = restore_blocks(checkpoint, reference, blocks=block, output=output)
    if as_json:
        console.print_json(done)
        return
    count, size = len(done.tensors), done.bytes / 1e6
    names = ", ".join(done.blocks)
    noun = "tensor" if count == 1 else "tensors"
    console.print_text(f"{names}: {count} {noun} ({size:.1f} MB) from {done.reference}")
    console.notices().print(console.printable(f"written: {output}"))
