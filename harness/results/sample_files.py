"""Gathers the samples of cells into one table, without holding all of them in memory."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from harness.errors import HarnessError
from harness.results.columns import SAMPLE_COLUMNS

_ROWS_AT_ONCE = 100_000
"""Rows that are held in memory and written together."""


def write_together(files: Sequence[Path], path: Path) -> None:
    """Write the rows of all files to one, in their order; an empty table if there are none.

    Columns that some files lack are empty there.

    Raises:
        HarnessError: a file is truncated or invalid.
    """
    if not files:
        pd.DataFrame(columns=list(SAMPLE_COLUMNS)).to_parquet(path)
        return
    schema = pa.unify_schemas([_schema(file) for file in files], promote_options="permissive")
    with pq.ParquetWriter(path, schema) as writer:
        for table in _batches(files, schema):
            writer.write_table(table)


def _batches(files: Sequence[Path], schema: pa.Schema) -> Iterator[pa.Table]:
    waiting: list[pa.Table] = []
    for file in files:
        waiting.append(_align(_read(file), schema))
        if sum(len(table) for table in waiting) >= _ROWS_AT_ONCE:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _align(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with the columns and types of a schema."""
    columns = [
        table.column(field.name) if field.name in table.column_names else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(dict(zip(schema.names, columns, strict=True))).cast(schema)


def _schema(file: Path) -> pa.Schema:
    """The columns of a file, without the index and the metadata of pandas."""
    try:
        schema = pq.read_schema(file).remove_metadata()
    except (OSError, ValueError) as error:
        raise _invalid(file, error) from None
    return pa.schema([field for field in schema if not field.name.startswith("__index_level_")])


def _read(file: Path) -> pa.Table:
    try:
        return pq.read_table(file, use_threads=False)
    except (OSError, ValueError) as error:
        raise _invalid(file, error) from None


def _invalid(file: Path, error: Exception) -> HarnessError:
    cell = file.name.partition(".")[0]
    return HarnessError(
        f"{file} is a truncated or invalid table ({error}); delete it and {cell}.json, and run the study again"
    )
