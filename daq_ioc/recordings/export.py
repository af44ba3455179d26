"""``daq-ioc export``: samples, or their means, as CSV, NumPy or HDF5 files.

Everything streams: memory does not grow with the recording.
"""

from __future__ import annotations

import argparse
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from daq_ioc import statistics
from daq_ioc.errors import UsageError
from daq_ioc.jls.data_recorder import DataReader
from daq_ioc.recordings.common import (
    add_command,
    add_output,
    add_range,
    needs,
    new_file,
    opened,
    progress,
    report_problems,
    sample_range,
)

_EXAMPLES = """\
  daq-ioc export run7.jls run7.csv --rate 100
  daq-ioc export run7.jls run7.npz --start 10 --stop 11
  daq-ioc export run7.jls run7.h5 --fields current,voltage"""

_CHUNK = 65536

Chunk = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class _Job:
    """What to export: windows of ``size`` samples from sample ``start`` on, ``count`` of them."""

    reader: DataReader
    names: tuple[str, ...]
    start: int
    size: int
    count: int
    dtypes: dict[str, np.dtype[Any]]

    @property
    def rate(self) -> float:
        return self.reader.sampling_frequency / self.size

    def units(self, name: str) -> str:
        return "s" if name == "time" else statistics.UNITS[statistics.FIELDS.index(name)]


def add_parser(subparsers: Any) -> None:
    """Register the command."""
    does = "write samples to a CSV, NumPy (.npy, .npz) or HDF5 (.h5) file"
    parser = add_command(subparsers, "export", does, _EXAMPLES, export)
    add_output(parser, "OUT")
    add_range(parser)
    parser.add_argument(
        "--rate", type=float, metavar="HZ",
        help="write means at about this rate instead of every sample",
    )  # fmt: skip
    parser.add_argument(
        "--fields", default="current,voltage,power",
        help=f"comma-separated, of {', '.join(statistics.FIELDS)} (default: the first three)",
    )  # fmt: skip


def export(args: argparse.Namespace) -> int:
    """Write the file; the time of a row is that of its first sample."""
    writer = _WRITERS.get(args.output.suffix.lower())
    if writer is None:
        raise UsageError(f"{args.output}: the name must end in one of {', '.join(_WRITERS)}")
    with opened(args.file) as reader:
        job = _job(args, reader)
        with new_file(args.output, force=args.force) as part:
            passes = len(job.dtypes) if writer is _npz else 1
            with progress(passes * job.count, "exporting", "row") as advance:
                writer(part, job, advance)
        report_problems(reader)
        print(f"{args.output}: {job.count} rows of {', '.join(job.dtypes)} at {job.rate:.6g} Hz")
    return 0


def _job(args: argparse.Namespace, reader: DataReader) -> _Job:
    names = tuple(args.fields.split(","))
    unknown = [name for name in names if name not in statistics.FIELDS]
    if unknown or len(set(names)) < len(names):
        raise UsageError(f"--fields {args.fields}: expected some of {','.join(statistics.FIELDS)}")
    start, stop = sample_range(reader, args)
    size, rate = 1, reader.sampling_frequency
    if args.rate is not None:
        if not 0 < args.rate <= rate:
            raise UsageError(f"--rate {args.rate:g}: expected more than 0, at most {rate:g}")
        size = round(rate / args.rate)
    count = (stop - start) // size
    if count == 0:
        raise UsageError(f"the stretch is shorter than one sample at {args.rate:g} Hz")
    dtypes: dict[str, np.dtype[Any]] = {"time": np.dtype(np.float64)}
    one = reader.samples_get(start, start + 1, fields=names)
    for name in names:
        kind = one["signals"][name]["value"].dtype if one else np.dtype(np.float32)
        dtypes[name] = kind if size == 1 else np.dtype(np.float64)
    return _Job(reader, names, start, size, count, dtypes)


def _chunks(job: _Job, names: tuple[str, ...]) -> Iterator[Chunk]:
    """Rows in chunks, with their times in s from the start of the recording."""
    done = 0
    for chunk in _values(job, tuple(name for name in names if name != "time")):
        count = len(next(iter(chunk.values())))
        if "time" in names:
            first = job.start + job.size * np.arange(done, done + count)
            chunk = {"time": first / job.reader.sampling_frequency, **chunk}
        yield chunk
        done += count


def _values(job: _Job, names: tuple[str, ...]) -> Iterator[Chunk]:
    reader, size = job.reader, job.size
    if size == 1 and names:
        yield from reader.pieces(job.start, job.start + job.count, fields=names)
        return
    for k in range(0, job.count, step := max(1, _CHUNK // 16)):
        count = min(step, job.count - k)
        first = job.start + k * size
        if not names:
            yield {"": np.empty(count)}
            continue
        rows = reader.data_get(first, first + count * size, size)
        means = rows["mean"]
        yield {name: means[:, statistics.FIELDS.index(name)] for name in names}


def _csv(path: Path, job: _Job, advance: Any) -> None:
    heads = [f"{name}_{u}" if (u := job.units(name)) else name for name in job.dtypes]
    formats = ["%.9f"] + ["%d" if job.dtypes[n].kind == "u" else "%.9g" for n in job.names]
    with path.open("w", newline="") as file:
        file.write(",".join(heads) + "\n")
        for chunk in _chunks(job, ("time", *job.names)):
            np.savetxt(file, np.column_stack(list(chunk.values())), fmt=formats, delimiter=",")
            advance(len(chunk["time"]))


def _npy(path: Path, job: _Job, advance: Any) -> None:
    """One structured array with a member per field."""
    layout = np.dtype(list(job.dtypes.items()))
    with path.open("wb") as file:
        _header(file, layout, job.count)
        for chunk in _chunks(job, ("time", *job.names)):
            rows = np.empty(len(chunk["time"]), layout)
            for name, values in chunk.items():
                rows[name] = values
            file.write(rows.tobytes())
            advance(len(rows))


def _npz(path: Path, job: _Job, advance: Any) -> None:
    """One array per field, and ``sampling_frequency``."""
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        for name, dtype in job.dtypes.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                _header(file, dtype, job.count)
                for chunk in _chunks(job, (name,)):
                    file.write(chunk[name].astype(dtype, copy=False).tobytes())
                    advance(len(chunk[name]))
        with archive.open("sampling_frequency.npy", "w") as file:
            np.lib.format.write_array(file, np.array(job.rate))


def _header(file: Any, dtype: np.dtype[Any], count: int) -> None:
    """The header of a .npy file with a 1-D array."""
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_2_0(
        file, {"descr": descr, "fortran_order": False, "shape": (count,)}
    )


def _hdf5(path: Path, job: _Job, advance: Any) -> None:
    """One compressed dataset per field, its unit an attribute."""
    try:
        import h5py
    except ImportError as error:
        raise needs("h5py", "hdf5", error) from error
    with h5py.File(path, "w") as file:
        file.attrs["sampling_frequency"] = job.rate
        file.attrs["start"] = job.start / job.reader.sampling_frequency
        for name, dtype in job.dtypes.items():
            dataset = file.create_dataset(
                name, (job.count,), dtype, chunks=(min(job.count, _CHUNK),),
                compression="gzip", compression_opts=1, shuffle=True,
            )  # fmt: skip
            dataset.attrs["units"] = job.units(name)
        done = 0
        for chunk in _chunks(job, ("time", *job.names)):
            count = len(chunk["time"])
            for name, values in chunk.items():
                file[name][done : done + count] = values
            done += count
            advance(count)


_WRITERS = {".csv": _csv, ".npy": _npy, ".npz": _npz, ".h5": _hdf5, ".hdf5": _hdf5}
