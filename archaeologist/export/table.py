"""The per-tensor table as Parquet or CSV, written artifact by artifact with pyarrow."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import archaeologist
from archaeologist.artifacts.output import whole_file
from archaeologist.export.columns import COLUMNS, Column, rows
from archaeologist.export.extra import tool
from archaeologist.moments import read_moment
from contracts.artifacts import LayerStats


def write_parquet(artifacts: Iterable[LayerStats], output: Path) -> int:
    """Writes a Parquet file with a row group a checkpoint; how many rows.

    Raises:
        ExtraMissing: pyarrow is not installed.
        ArtifactUnwritable: The file system refuses.
    """
    parquet = tool("pyarrow.parquet", wanted_by="--format parquet")
    return _write(
        artifacts, output, opened=lambda path, schema: parquet.ParquetWriter(path, schema, compression="zstd")
    )


def write_csv(artifacts: Iterable[LayerStats], output: Path) -> int:
    """Writes a CSV file with a header line, empty where there is no number; how many rows.

    Raises:
        ExtraMissing: pyarrow is not installed.
        ArtifactUnwritable: The file system refuses.
    """
    csv = tool("pyarrow.csv", wanted_by="--format csv")
    return _write(artifacts, output, opened=csv.CSVWriter)


def _write(artifacts: Iterable[LayerStats], output: Path, *, opened: Callable[[str, Any], Any]) -> int:
    arrow = tool("pyarrow", wanted_by="the table")
    schema = _schema(arrow)
    count = 0
    with whole_file(output) as temporary, opened(str(temporary), schema) as writer:
        for artifact in artifacts:
            found = list(rows(artifact))
            columns = {column.name: _values(column, [row[column.name] for row in found]) for column in COLUMNS}
            writer.write_table(arrow.table(columns, schema=schema))
            count += len(found)
    return count


def _values(column: Column, values: list[Any]) -> list[Any]:
    if column.kind == "time":
        return [read_moment(value) for value in values]
    return values


def _schema(arrow: Any) -> Any:
    types = {
        "text": arrow.string(),
        "time": arrow.timestamp("ms", tz="UTC"),
        "integer": arrow.int64(),
        "number": arrow.float64(),
        "flag": arrow.bool_(),
    }
    fields = [
        arrow.field(column.name, types[column.kind], metadata={"unit": column.unit, "description": column.meaning})
        for column in COLUMNS
    ]
    return arrow.schema(fields, metadata={"writer": f"archaeologist {archaeologist.__version__}"})
