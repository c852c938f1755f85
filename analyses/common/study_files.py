"""A study on disk: one xarray Dataset, its provenance, its JSON summary; atomic, never over a user's file."""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xarray as xr

from analyses.common.versions import rhoscope_version
from manifold.errors import InputError, OutputExistsError, RhoscopeError

SCHEMA_VERSION = 1
HDF5_BEGINS = b"\x89HDF\r\n\x1a\n"
CHECKPOINT_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".tar")


class Progress(Protocol):
    """What long work calls to say how far it is; the command line turns it into a bar."""

    def __call__(self, done: float, total: float, message: str = "") -> None:
        """Report ``done`` of ``total`` units (any unit) and a short message."""


def silent(done: float, total: float, message: str = "") -> None:
    """A `Progress` that says nothing: the default everywhere in the library."""


def check_free(path: Path | None, force: bool) -> None:
    """Refuse early, before any work, an output that exists already.

    Raises
    ------
    OutputExistsError
        If the path exists and ``force`` is false.
    """
    if path is not None and os.path.lexists(path) and not force:
        raise OutputExistsError(f"{path} exists already; give --force to replace it, or another name")


@contextmanager
def atomic_path(path: Path, *, force: bool = False) -> Iterator[Path]:
    """Write to a temporary file beside ``path``; rename it on success, remove it on failure.

    Raises
    ------
    OutputExistsError
        If the path exists and ``force`` is false.
    RhoscopeError
        If the folder cannot be written (missing rights, full disk); the old file is untouched.
    """
    path = Path(path)
    check_free(path, force)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        check_free(path, force)  # again: new/../old is old only once new is there
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        os.close(handle)
    except OSError as error:
        raise RhoscopeError(f"cannot write {path}: {error.strerror or error}") from error
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except OSError as error:
        raise RhoscopeError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def provenance(*, seed: int | None = None, device: str = "cpu", dtype: str = "float64") -> dict[str, Any]:
    """Who made this result: versions, command line, seed, device and dtype."""
    return {
        "rhoscope": rhoscope_version(),
        "python": sys.version.split()[0],
        "numpy": version("numpy"),
        "scipy": version("scipy"),
        "torch": version("torch"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "seed": seed,
        "device": device,
        "dtype": dtype,
    }


def plain(value: Any) -> Any:
    """Turn a nested result into JSON types: NaN and infinities to null, complex to ``{"re", "im"}``."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist") and not isinstance(value, (str, bytes)):
        return plain(value.tolist())
    if isinstance(value, complex):
        return {"re": plain(value.real), "im": plain(value.imag)}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    return value


def readable(text: str) -> str:
    r"""Text that any file can hold: bytes of a path that are no text become what they are, or escapes.

    Paths reach Python with undecodable bytes as lone surrogates, which no encoding writes. Where the locale
    hid ordinary UTF-8 (``LC_ALL=C``) the name comes back; other bytes are shown as ``\xff``.
    """
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a surrogate that is no byte
        return text.encode("utf-8", "backslashreplace").decode("utf-8")


def to_json(document: dict[str, Any]) -> str:
    """The one JSON document of a command, as the contract of ``--json`` asks."""
    return json.dumps(plain({"schema_version": SCHEMA_VERSION, **document}), allow_nan=False)


def write_study(study: xr.Dataset, path: Path, *, force: bool = False) -> Path:
    """Write a study as netCDF4 (h5netcdf), atomically; complex variables become ``*_re`` and ``*_im``.

    Parameters
    ----------
    study : xarray.Dataset
        Every variable should carry ``units`` and ``definition`` in its attrs.
    path : Path
        Usually ends in ``.nc``.
    force : bool
        Replace an existing file.

    Returns
    -------
    Path
        The path written.
    """
    flat = study.assign_attrs(
        {key: _attribute(value) for key, value in {"schema_version": SCHEMA_VERSION, **study.attrs}.items()}
    )
    for name in list(flat.variables):
        values = flat[name]
        if np.iscomplexobj(values):
            flat = flat.drop_vars(name).assign({f"{name}_re": values.real, f"{name}_im": values.imag})
        elif values.dtype == bool:
            flat[name] = values.astype(np.int8).assign_attrs(values.attrs)
    # Made in memory: on a full disk the HDF5 library crashes when its own files are closed.
    content = bytes(flat.to_netcdf(engine="h5netcdf"))
    with atomic_path(Path(path), force=force) as temporary:
        temporary.write_bytes(content)
    return Path(path)


def _attribute(value: Any) -> str | int | float:
    """A value as netCDF attributes hold it."""
    if isinstance(value, str):
        return readable(value)
    return value if isinstance(value, (int, float)) else json.dumps(plain(value))


def read_study(path: Path) -> xr.Dataset:
    """Load a study written by `write_study`, wholly into memory.

    Raises
    ------
    InputError
        If the file is missing, is no netCDF file, or was written by a newer schema.
    """
    _check_is_study(Path(path))
    try:
        with xr.open_dataset(path, engine="h5netcdf") as opened:
            study = opened.load()
    except Exception as error:  # what HDF5, h5py and xarray raise on damaged files is of every kind
        raise InputError(
            f"{path}: a damaged study: cut short, or changed ({type(error).__name__}: {error})"
        ) from error
    version = study.attrs.get("schema_version", 0)
    if not isinstance(version, (int, float, np.number)):
        raise InputError(f"{path}: expected a study written by rhoscope, its schema_version is no number")
    if version > SCHEMA_VERSION:
        raise InputError(f"{path}: written by a newer rhoscope; update rhoscope to read it")
    return study


def _check_is_study(path: Path) -> None:
    """Say what a file is that is no study, in words of what the user may have meant.

    Raises
    ------
    InputError
        If the file cannot be opened or does not begin as netCDF4.
    """
    try:
        with path.open("rb") as file:
            begin = file.read(len(HDF5_BEGINS))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    if begin == HDF5_BEGINS:
        return
    if path.suffix in CHECKPOINT_SUFFIXES or begin.startswith((b"PK", b"\x80")):
        raise InputError(
            f"{path}: seems to be a checkpoint, which is no study yet: rhoscope analyze {path} --report PAGE "
            "writes its page; rhoscope report takes a run directory or a study (.nc)"
        )
    raise InputError(f"{path}: expected a run directory, or a study written by rhoscope (.nc)")


def complex_variable(study: xr.Dataset, name: str) -> np.ndarray:
    """A complex variable of a study, whether fresh or read back as ``*_re`` and ``*_im``."""
    if name in study:
        return study[name].to_numpy()
    return study[f"{name}_re"].to_numpy() + 1j * study[f"{name}_im"].to_numpy()


def write_csv(study: xr.Dataset, folder: Path, *, force: bool = False) -> list[Path]:
    """Write every variable of a study as one CSV file in ``folder``; returns the paths.

    Complex variables become two columns, ``*_re`` and ``*_im``.

    Parameters
    ----------
    study : xarray.Dataset
    folder : Path
        Made if it is not there.
    force : bool
        Replace existing files.

    Returns
    -------
    list of Path
    """
    paths = [Path(folder) / f"{name}.csv" for name in study.data_vars]
    for path in paths:
        check_free(path, force)
    for path, (name, values) in zip(paths, study.data_vars.items(), strict=True):
        columns = {str(name): values}
        if np.iscomplexobj(values):
            columns = {f"{name}_re": values.real, f"{name}_im": values.imag}
        with atomic_path(path, force=force) as temporary:
            if values.ndim:
                table = xr.Dataset(columns).to_dataframe()[list(columns)]
                temporary.write_text(readable(table.to_csv()), "utf-8")
            else:
                numbers = ",".join(str(column.item()) for column in columns.values())
                temporary.write_text(readable(f"{','.join(columns)}\n{numbers}\n"), "utf-8")
    return paths
