"""The tables of a corpus: CSV files, plain or gzipped, read row by row, only the columns asked for."""

import csv
import gzip
import io
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path


__all__ = ["find_table", "read_row_at", "read_table", "read_table_with_positions"]

SUFFIXES = ("", ".gz")


def find_table(root: str | Path, pattern: str) -> Path:
    """
    Find a table of a corpus.

    Args:
        root (`str` or `Path`): folder of the table.
        pattern (`str`): its file name, such as `"train.csv"`, or a pattern, such as `"mimic-cxr-2.*-split.csv"`;
            `.gz` may follow. Of a plain and a gzipped file of one name, the plain one is taken.

    Raises:
        `FileNotFoundError`: no such table.
        `ValueError`: tables of several names.
    """
    found: dict[str, Path] = {}
    for suffix in SUFFIXES:
        for path in sorted(Path(root).glob(pattern + suffix)):
            if path.is_file():
                found.setdefault(path.name.removesuffix(".gz"), path)
    if not found:
        raise FileNotFoundError(f"`root` must be a folder with the table {pattern} (or .gz), got {root} without it.")
    if len(found) > 1:
        raise ValueError(f"`root` must be a folder with one table {pattern}, got {root} with {sorted(found)}.")
    return next(iter(found.values()))


def read_table(
    path: str | Path, columns: Sequence[str], optional_columns: Sequence[str] = ()
) -> Iterator[dict[str, str]]:
    """
    Read the rows of a table one after the other.

    Args:
        path (`str` or `Path`): a CSV file in UTF-8 whose first line names the columns; gzipped if it ends in `.gz`.
        columns (sequence of `str`): the columns to read, which must be there.
        optional_columns (sequence of `str`): more columns, whose values are empty in a table that lacks them.

    Returns:
        iterator of `dict[str, str]`: column → value without white space around it; every column asked for is in every
        row, with `""` where a line is too short. Empty lines are skipped.

    Raises:
        `FileNotFoundError`: no such file.
        `ValueError`: a column is missing; this and the above are raised before the first row is asked for. While
            reading: bytes that are no UTF-8, no CSV, or no whole gzip file; the error names the line.
    """
    return (row for _, row in read_table_with_positions(path, columns, optional_columns))


def read_table_with_positions(
    path: str | Path, columns: Sequence[str], optional_columns: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, str]]]:
    """
    As [`read_table`], with the position of each row before it, by which [`read_row_at`] finds it again. So a plan need
    not hold the long texts of a table: it holds where they are.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"`path` must be a table, got {path}, which is no file.")
    _, header = next(_read_lines(path), ("", []))
    missing = [name for name in columns if name not in header]
    if missing:
        raise ValueError(f"{path} must have the columns {list(columns)}, but lacks {missing}.")
    indices = {name: header.index(name) if name in header else None for name in (*columns, *optional_columns)}
    lines = _read_lines(path)
    next(lines)
    return ((position, _pick(line, indices)) for position, line in lines)


def read_row_at(path: str | Path, position: str, columns: Sequence[str]) -> dict[str, str]:
    """
    Read one row of a table that is not gzipped.

    Args:
        path (`str` or `Path`): the table.
        position (`str`): from [`read_table_with_positions`].
        columns (sequence of `str`): columns of the table.
    """
    _, header = next(_read_lines(Path(path)))
    start, end = map(int, position.split("-"))
    with open(path, "rb") as file:
        file.seek(start)
        text = file.read(end - start).decode("utf-8")
    line = next(values for values in csv.reader(io.StringIO(text, newline="")) if values)
    return _pick(line, {name: header.index(name) for name in columns})


def _pick(line: list[str], indices: dict[str, int | None]) -> dict[str, str]:
    length = len(line)
    return {name: line[i].strip() if i is not None and i < length else "" for name, i in indices.items()}


def _read_lines(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Position and values of each line of the table that is not empty; first the names of the columns."""
    ends, start = [0], 0
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        reader = csv.reader(_decode(file, ends))
        try:
            for values in reader:
                if values:
                    yield f"{start}-{ends[0]}", [name.strip() for name in values] if start == 0 else values
                start = ends[0]
        except (UnicodeDecodeError, csv.Error, EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(
                f"{path} must be a table (CSV in UTF-8), but cannot be read after line {reader.line_num}: {error}"
            ) from error


def _decode(lines: Iterable[bytes], ends: list[int]) -> Iterator[str]:
    """The lines as text; `ends` is told where the last one ends, in bytes."""
    for line in lines:
        encoding = "utf-8" if ends[0] else "utf-8-sig"
        ends[0] += len(line)
        yield line.decode(encoding)
