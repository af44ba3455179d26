"""Reading the published recordings gives what the maker's software gives, or what is true."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from daq_ioc.jls.data_recorder import DataReader
from daq_ioc.statistics import FIELDS
from tests.jls import vectors

QUIRKS = {
    "increment silently reduced to a multiple of samples_per_reduction",
    "windows silently moved back to a reduction boundary",
    "length is 0, min and max are NaN",
}
"""What the maker's data_get does and ours does not."""


def reader(name: str) -> DataReader:
    return DataReader().open(vectors.opened(name))


@pytest.mark.parametrize("name", vectors.INTACT)
def test_open(name: str) -> None:
    r, want = reader(name), vectors.expected(name)["open"]
    for key in (
        "config", "footer", "user_data", "footer_user_data", "sample_id_range",
        "sampling_frequency", "input_sampling_frequency", "output_sampling_frequency",
        "reduction_frequency", "duration",
    ):  # fmt: skip
        assert getattr(r, key) == want[key], key
    assert r.summary_string() == want["summary_string"]
    assert str(r) == want["str"]
    assert r.problems == []
    assert r.calibration is not None
    calibration = want["calibration"]
    assert r.calibration.serial_number == calibration["serial_number"]
    for key in ("current_offset", "current_gain", "voltage_offset", "voltage_gain"):
        values = [np.nan if v is None else v for v in calibration[key]]
        np.testing.assert_array_equal(getattr(r.calibration, key), np.array(values, np.float32))


@pytest.mark.parametrize("name", vectors.INTACT)
def test_samples_bit_for_bit(name: str) -> None:
    r, arrays = reader(name), vectors.arrays(name)
    for k, query in enumerate(vectors.expected(name)["samples_get"]):
        start, stop = query["start"], query["stop"]
        got = r.samples_get(start, stop)
        assert got is not None
        assert got["time"] == query["time"]
        assert got["signals"].keys() == query["units"].keys()
        for field, signal in got["signals"].items():
            assert signal["units"] == query["units"][field]
            assert str(signal["value"].dtype) == query["dtype"][field]
            want = arrays.get(f"samples_{k}__{field}")
            if want is None:
                want = arrays[f"samples_all__{field}"][start:stop]
            np.testing.assert_array_equal(signal["value"], want, err_msg=f"{field} {start}:{stop}")


@pytest.mark.parametrize("name", vectors.INTACT)
def test_reductions_bit_for_bit(name: str) -> None:
    got, want = reader(name).get_reduction(), vectors.arrays(name)["get_reduction_all"]
    if name.startswith("legacy"):  # the maker's reader decodes these wrongly
        assert len(got) == len(want)
        np.testing.assert_array_equal(got["mean"][:, 0], want["mean"][:, 0])
        return
    used = want["length"] > 0  # rows of no samples have arbitrary values in files made by insert()
    for member in ("length", "mean", "variance", "min", "max"):
        np.testing.assert_array_equal(got[member][used], want[member][used])
    assert np.isnan(got["mean"][~used]).all()


def _table(result: dict[str, Any]) -> np.ndarray[Any, Any]:
    keys = ("µ", "σ2", "min", "max")
    return np.array([[result["signals"][f][key]["value"] for key in keys] for f in FIELDS])


@pytest.mark.parametrize("name", vectors.INTACT)
def test_statistics(name: str) -> None:
    arrays = vectors.arrays(name)
    scale = np.nanmax(np.abs(arrays["stats_truth"][..., 2:]), axis=(0, 2))[:, np.newaxis]
    tolerance = 2e-7 * np.concatenate((scale, scale**2, scale, scale), axis=1)
    for k, (start, stop) in enumerate(arrays["stats_ranges"].tolist()):
        got = _table(reader(name).statistics_get(start, stop))
        truth, official = arrays["stats_truth"][k], arrays["stats_official"][k]
        right = (np.abs(got - truth) <= tolerance) | (np.isnan(got) & np.isnan(truth))
        # Where the stored reductions are not those of the samples, both use the reductions.
        stored = np.abs(got - official) <= tolerance
        stored &= not arrays["stats_agree"][k].all()
        assert (right | stored).all(), (name, start, stop, got, truth, official)


@pytest.mark.parametrize("name", vectors.INTACT)
def test_statistics_structure(name: str) -> None:
    for query in vectors.expected(name)["statistics_get"]:
        got = reader(name).statistics_get(query["start"], query["stop"])
        want = query["result"]
        assert got["time"]["range"] == want["time"]["range"]
        assert got["time"]["delta"] == want["time"]["delta"]
        assert got["source"] == want["source"]
        for field in FIELDS:
            for key, item in want["signals"][field].items():
                assert got["signals"][field][key]["units"] == item["units"]


@pytest.mark.parametrize("name", vectors.INTACT)
def test_data_get(name: str) -> None:
    for k, query in enumerate(vectors.expected(name)["data_get"]):
        start, stop, increment = query["start"], query["stop"], query["increment"]
        got = reader(name).data_get(start, stop, increment)
        assert len(got) == (stop - start) // increment
        if query["quirk"] in QUIRKS or name.startswith("legacy"):
            continue
        want = vectors.arrays(name)[f"data_get_{k}"]
        used = want["length"] > 0
        for member in ("mean", "min", "max"):
            np.testing.assert_allclose(got[member][used], want[member][used], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", [*vectors.INTACT, "zero_samples_a", "never_attached_a"])
def test_edge_calls(name: str) -> None:
    for call in vectors.expected(name).get("edge_calls", []):
        method = getattr(reader(name), call["call"])
        if call["args"] == [0, 0]:  # an empty range is no error here
            method(*call["args"])
        elif "error" in call:
            with pytest.raises(ValueError, match=r"sample|units"):
                method(*call["args"])
        elif call["result"] != "returned":
            assert list(method(*call["args"])) == call["result"]


def test_zero_samples() -> None:
    r = reader("zero_samples_a")
    assert r.sample_id_range == [0, 0]
    got = r.samples_get()
    assert got is not None
    assert [len(s["value"]) for s in got["signals"].values()] == [0] * 7
    statistics = r.statistics_get()
    assert statistics["time"]["samples"]["value"] == 0
    assert np.isnan(statistics["signals"]["current"]["µ"]["value"])
    assert len(r.data_get(0, 0, 1)) == len(r.get_reduction()) == 0
    assert r.problems == []


def test_never_attached() -> None:
    r = reader("never_attached_a")
    assert r.samples_get() is None
    assert np.isnan(r.statistics_get()["signals"]["power"]["∫"]["value"])
    assert len(r.data_get(0, 0, 1)) == len(r.get_reduction()) == 0
    assert r.reduction_frequency == r.sampling_frequency == 1.0


def test_voltage_range_of_each_block() -> None:
    """Theirs converts a whole query with one range; block by block it gives what is true."""
    got = reader("v_range_blocks_a").samples_get()
    assert got is not None
    for k, block in enumerate(vectors.expected("v_range_blocks_a")["blocks"]):
        for field in FIELDS:
            want = vectors.arrays("v_range_blocks_a")[f"block_{k}__{field}"]
            values = got["signals"][field]["value"][block["start"] : block["stop"]]
            np.testing.assert_array_equal(values, want)


def test_legacy_reductions() -> None:
    """Reduction format v1 holds mean, population variance, min and max of each field."""
    r = reader("legacy_reduction_v1_a")
    assert r.config is not None
    rows, size = r.get_reduction(), r.config["samples_per_reduction"]
    for k in range(1, len(rows)):  # the first samples of a file are replaced, its rows are not
        got = r.samples_get(k * size, (k + 1) * size)
        assert got is not None
        for j, field in enumerate(FIELDS[: len(r.config["reduction_fields"])]):
            values = got["signals"][field]["value"].astype(np.float64)
            mean = values.mean()
            want = (size, mean, ((values - mean) ** 2).sum(), values.min(), values.max())
            np.testing.assert_allclose(rows[k, j].item(), want, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize(
    "name", ["trunc_unclosed_raw_a", "trunc_unclosed_f32_a", "trunc_copied_raw_a"]
)
def test_cut_files_give_every_whole_record(name: str) -> None:
    r, want = reader(name), vectors.expected(name)
    assert r.problems
    assert r.sample_id_range == [0, want["truncated"]["recoverable_samples"]]
    for key, values in vectors.arrays(name).items():
        if key.startswith("recoverable__"):
            field = key.removeprefix("recoverable__")
            got = r.samples_get(fields=field)
            assert got is not None
            np.testing.assert_array_equal(got["signals"][field]["value"], values, err_msg=key)
        elif key == "reductions_of_complete_blocks":
            rows = r.get_reduction()[: len(values)]
            for member in ("length", "mean", "variance", "min", "max"):
                np.testing.assert_array_equal(rows[member], values[member])


@pytest.mark.parametrize("name", ["corrupt_data_a", "corrupt_tag_a"])
def test_damaged_record_reads_as_missing(name: str) -> None:
    r, whole = reader(name), reader("raw_ranges_a")
    got, want = r.samples_get(fields="raw"), whole.samples_get(fields="raw")
    assert got is not None
    assert want is not None
    raw, right = got["signals"]["raw"]["value"], want["signals"]["raw"]["value"]
    start, stop = vectors.expected(name)["corrupt"]["samples_in_bad_tlv"]
    assert (raw[start:stop] == 0xFFFF).all()
    raw[start:stop] = right[start:stop]
    np.testing.assert_array_equal(raw, right)
    assert len(r.problems) == 1
