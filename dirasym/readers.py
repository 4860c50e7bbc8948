"""Files that others wrote: text, JSON, JSON lines and tables, read with errors of one line."""

import csv
import io
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from dirasym import files

_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_SEPARATORS = (",", "\t", ";", "|")


def read_text(path: str | os.PathLike, encoding: str = "utf-8") -> str:
    """The file's text, without the byte order mark that some programs put in front.

    Raises:
      ValueError: the file cannot be read, holds another encoding, or a NUL, which no text has.
        One line, with its name.
    """
    try:
        files.check_regular(path)
        data = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    try:
        text = data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        kind = _MARKS.get(data[:2])
        hint = f"it looks like {kind}" if kind else "name its encoding, or save it as UTF-8"
        raise ValueError(f"{path}: line {line} is not {encoding.upper()}: {hint}") from None
    except UnicodeError as error:
        raise ValueError(f"{path}: encoding {encoding!r} does not read it: {error}") from None
    except (LookupError, TypeError, ValueError):  # None, or a name with a NUL
        raise ValueError(f"{path}: there is no encoding {encoding!r}") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(f"{path}: line {line} holds a NUL: name its encoding, or save it as UTF-8")
    return text


def is_unicode(text: str) -> bool:
    """Whether it can be written to a file: halves of surrogate pairs cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def parse_json(text: str, source: str | os.PathLike, *, once: bool = False) -> Any:
    """JSON of any kind, with `once` no key of an object twice, of which JSON keeps the last.

    Raises:
      ValueError: one line that names the source.
    """
    try:
        value = json.loads(text, object_pairs_hook=_once if once else None)
    except ValueError as error:
        raise ValueError(f"{source} is not JSON: {error}") from None
    except RecursionError:
        raise ValueError(f"{source} is not JSON: it is nested too deeply") from None
    if "\\u" in text and not is_unicode(json.dumps(value, ensure_ascii=False)):
        raise ValueError(f"{source} holds half of a surrogate pair")
    return value


def _once(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in fields:
        if key in found:
            raise ValueError(f"key {key!r} stands there twice")
        found[key] = value
    return found


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """The object that a JSON file holds. Raises ValueError, one line that names the file."""
    value = parse_json(read_text(path), path)
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, not an object")
    return value


def read_model_config(directory: str | os.PathLike) -> dict[str, Any]:
    """The config.json of a Hugging Face directory. Raises ValueError, as `read_json` does.

    Where there is no such directory, it may be the name of a model on the Hub: the message says
    that nothing is downloaded.
    """
    path = pathlib.Path(directory) / "config.json"
    if not path.parent.exists():
        raise ValueError(
            f"{path}: no such directory, and nothing is downloaded "
            "(`hf download NAME --local-dir DIR` makes one)"
        )
    if not path.exists():
        raise ValueError(f"{path.parent}: no model in it, as it has no config.json")
    return read_json(path)


def read_json_lines(path: str | os.PathLike, encoding: str = "utf-8") -> list[tuple[int, Any]]:
    """(line number, value) of each line that is not blank; the first line is 1.

    Raises:
      ValueError: as `read_text` and `parse_json`, or a key that is there twice; the line is named.
    """
    lines = read_text(path, encoding).split("\n")
    return [
        (number, parse_json(line, f"{path}: line {number}", once=True))
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]


def read_table(
    path: str | os.PathLike, columns: Sequence[str], encoding: str = "utf-8"
) -> list[tuple[int, dict[str, str]]]:
    r"""(row number, cells by column) of a file with a header: commas, tabs, semicolons or bars.

    The separator is the one that finds all `columns` in the header. Names of columns may be
    written in either case, and blanks around a cell are no part of it. Rows are numbered as
    the file's lines are: the header is row 1, and blank lines count.

    Examples:
      >>> import pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "cities.csv"
      >>> _ = path.write_text("Country;Capital\nFrance; Paris\n")
      >>> read_table(path, ("country", "capital"))
      [(2, {'country': 'France', 'capital': 'Paris'})]

    Raises:
      ValueError: as `read_text`; a column that is absent, there twice or asked twice, a quote
        that is not closed or stands inside a cell, or a row with a cell that is missing or
        blank, or with more cells than the header. The row is named.
    """
    text = read_text(path, encoding)
    for column in columns:
        if not isinstance(column, str):
            raise ValueError(f"{path}: a column is known by its name, got {column!r}")
    if not text.strip():
        raise ValueError(f"{path}: the file is empty")
    wanted = [column.strip().lower() for column in columns]
    if len(set(wanted)) < len(wanted):
        raise ValueError(f"{path}: {' and '.join(map(repr, columns))} are one column")
    header = text[:80].splitlines()[0]
    for separator in _SEPARATORS:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        try:
            names = [name.strip().lower() for name in next(reader, [])]
        except csv.Error:
            names = []
        if set(wanted) <= set(names):
            break
    else:
        absent = [column for column in columns if column.strip().lower() not in header.lower()]
        column = (absent or columns)[0]
        raise ValueError(f"{path} has no column {column!r}: row 1 is {header!r}")
    for name in wanted:
        if names.count(name) > 1:
            raise ValueError(f"{path} has {names.count(name)} columns {name!r}")
    rows, first_line = [], reader.line_num + 1
    try:
        for cells in reader:
            number, first_line = first_line, reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) > len(names):
                raise ValueError(
                    f"{path}: row {number} has {len(cells)} cells, the header {len(names)}"
                )
            of_name = dict(zip(names, map(str.strip, cells), strict=False))
            for column, name in zip(columns, wanted, strict=True):
                if not of_name.get(name):
                    raise ValueError(f"{path}: row {number} has no {column}")
            rows.append((number, {c: of_name[n] for c, n in zip(columns, wanted, strict=True)}))
    except csv.Error as error:
        raise ValueError(f"{path}: row {first_line} is no row of a table: {error}") from None
    return rows
