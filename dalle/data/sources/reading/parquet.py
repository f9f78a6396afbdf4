"""Parquet files, by pyarrow, which is of the extra `data`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from dalle.config.checks import installed

_ROWS = 32
"""Read at a time: images may be in them."""


def _pyarrow(path: Path) -> ModuleType:
    with installed(f"{path}: reading Parquet needs pyarrow: pip install 'dalle[data]'"):
        import pyarrow.parquet
    return pyarrow


def parquet_columns(path: Path) -> list[str]:
    """Names of the columns. Raises ValueError where the file cannot be read."""
    pyarrow = _pyarrow(path)
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            return list(file.schema_arrow.names)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _damaged(path, error) from None


def holds_bytes(path: Path, column: str) -> bool:
    """Whether a column may hold images, and not only their names. Raises ValueError where the file cannot be read."""
    pyarrow = _pyarrow(path)
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            kind = file.schema_arrow.field(column).type
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _damaged(path, error) from None
    return not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind))


def parquet_rows(path: Path, *columns: str) -> Iterator[tuple[Any, ...]]:
    """The rows' values of some columns, in order. Raises ValueError where the file cannot be read."""
    pyarrow = _pyarrow(path)
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_ROWS, columns=list(columns)):
                for row in batch.to_pylist():
                    yield tuple(row[name] for name in columns)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> ValueError:
    why = " ".join(str(error).split())[:200]
    return ValueError(f"{path} is damaged or no Parquet file: {why}; write it anew")
