"""What a kept result of a benchmark must say, by benchmark."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from benchmarks import card, scaling
from benchmarks.arms import ARMS
from benchmarks.augment import verdict

Result = dict[str, Any]


def check_head(path: Path, root: Path) -> Result:
    """What every result says. Returns it."""
    result: Result = json.loads(path.read_text(encoding="utf-8"))
    assert path.name.startswith(f"{result['benchmark']}-")
    assert (root / "benchmarks" / f"{result['benchmark']}.py").is_file()
    assert datetime.fromisoformat(result["measured_at"]).tzinfo is not None
    assert result["device"] and result["threads"] >= 1 and result["load"] >= 0
    return result


def check_versions(result: Result, libraries: set[str]) -> None:
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", result["commit"])
    assert libraries <= result["versions"].keys() and result["cores"] >= 1


def check_spread(value: dict[str, Any], repeats: int) -> None:
    assert set(value) == {"median", "low", "high", "repeats"} and len(value["repeats"]) == repeats
    assert 0 < value["low"] <= value["median"] <= value["high"]


def check_loaders(result: Result) -> None:
    check_versions(result, {"python", "torch", "torchvision", "timm", "numpy", "numba", "ffcv"})
    repeats = result["repeats"]
    for one in result["results"]:
        lost = sum(
            (failed["dataset"], failed["arm"], failed["loader"]) == (one["dataset"], one["arm"], one["loader"])
            for failed in result["failed"]
        )
        for key in ("images_per_s", "images_per_cpu_s", "first_batch_s"):
            check_spread(one[key], repeats - lost)
        assert 0 <= one["clean"] <= repeats and one["threads"] >= 1 and one["image_bytes"] > 0
        assert one["ratio_to_ours"] == 1 or one["loader"] != "ours"
        assert one["share_of_bandwidth"] > 0
    for rate in result["bandwidth"].values():
        check_spread(rate, repeats)
    assert all(isinstance(reason, str) and reason for reason in result["skipped"].values())


def check_trials(trials: Result) -> None:
    count = trials["trials"]
    assert all(len(trials[key]) == count for key in ("imports_bytes", "private_bytes", "map", "images_per_s"))
    for private, of_map in zip(trials["private_bytes"], trials["map"], strict=True):
        assert private < trials["imports_bytes"][0], "a loader takes less than the libraries"
        assert of_map["private_bytes"] == 0 and 0 < of_map["resident_bytes"] <= trials["map_file_bytes"] + 4096
        assert of_map["share_bytes"] <= of_map["resident_bytes"] / count * 1.05, "the page cache is one"


def check_augment(result: Result) -> None:
    check_versions(result, {"python", "torch", "numpy", "numba"})
    names = set(result["lines_of_code"])
    assert {"numba", "torch"} <= names and (result["compiler"] is None) == ("C" not in names)
    assert all(lines > 50 for lines in result["lines_of_code"].values())
    rates = {name: [row["kernels"][name]["images_per_cpu_s"]["median"] for row in result["rows"]] for name in names}
    for row in result["rows"]:
        assert row["arm"] in ARMS and set(row["kernels"]) == names
        for kernel in row["kernels"].values():
            for key in ("images_per_cpu_s", "images_per_s"):
                check_spread(kernel[key], result["repeats"])
    ordered = {name: rates[name] for name in result["rows"][0]["kernels"]}
    assert result["verdict"] == verdict(ordered, result["lines_of_code"]), "the sentence follows from the numbers"


def check_step(result: Result) -> None:
    check_versions(result, {"python", "torch", "torchvision", "timm", "ray"})
    if (trained := result.get("throughput")) is not None:
        for row in trained["rows"]:
            check_spread(row["images_per_s"], len(row["other_load"]))
            assert row["threads"] >= 1 and (row["arm"] == "naive" or row["threads"] == 1)
            assert (row["trials"] == 1) if row["arm"] == "naive" else (row["trials"] == result["cores"])
        assert result["bfloat16"] or "ours-bf16" not in {row["arm"] for row in trained["rows"]}
    if (over := result.get("oversubscription")) is not None:
        cases = over["cases"]
        assert [cases[name]["threads"] for name in ("a thread each", "a thread a core each")] == [1, result["cores"]]
        for case in cases.values():
            check_spread(case["images_per_s"], len(case["other_load"]))
    if (enforced := result.get("enforcement")) is not None:
        assert set(enforced["environment"].values()) == {str(enforced["threads"])} and enforced["torch_threads"] == 1
        assert all(pool["threads"] == enforced["threads"] for pool in enforced["pools"])
        assert len(enforced["work"]) >= 4 and all(work["kept"] for work in enforced["work"].values())


def check_card(result: Result) -> None:
    check_versions(result, {"python", "torch", "torchvision", "timm", "numpy", "numba"})
    measured = [row for part in ("loader", "cells", "packing") for row in result.get(part, [])]
    assert measured and result["card"]
    for row in measured:
        assert ("failed" in row) != ("images_per_s" in row) and row["image_size"] > 0
        if "images_per_s" in row:
            check_spread(row["images_per_s"], result["repeats"])
            check_spread(row["first_step_s"], result["repeats"])
    for row in result.get("cells", []):
        assert row["arm"] in card.ARMS and not (row.get("recorded") and row["arm"] in ("naive", "plain"))
        assert 0 < row.get("share_of_peak", 0.5) < 1, "no step is faster than the card"
    if (grid := result["grid"]) is not None:
        assert grid["minutes"] == pytest.approx(sum(cell["minutes"] for cell in grid["cells"]), abs=0.02)


def check_scaling(result: Result) -> None:
    check_versions(result, {"python", "torch", "numpy", "numba", "pyarrow"})
    for row in result["rows"]:
        assert len(row["sizes"]) == len(row["costs"]) == len(result["scales"]) >= 2
        assert row["sizes"] == sorted(row["sizes"]) and min(row["costs"]) > 0
        assert row["exponent"] == pytest.approx(scaling.growth(row["sizes"], row["costs"]), abs=0.01)


def check_resize(result: Result) -> None:
    check_versions(result, {"python", "numpy", "numba", "pillow", "torch", "torchvision"})
    assert {"bicubic_64_to_224", "bilinear_64_to_224", "bicubic_opencv_64_to_224"} <= set(result["kernels"])
    for name, measured in result["kernels"].items():
        assert set(measured) == {"ours_us"} | (set() if "opencv" in name else {"pillow_us", "torchvision_us"})
        for one in measured.values():
            check_spread(one, result["rounds"])
    stored = result["batches"]
    assert stored["large_bytes"] > 10 * stored["small_bytes"] and stored["written_s"] > 0
    assert {"resized_warm", "stored_warm", "resized_cold", "stored_cold"} <= set(stored["images_per_s"])
    for name, one in stored["images_per_s"].items():
        check_spread(one, 5 if "jpeg" in name else result["rounds"])


CHECKS: dict[str, Callable[[Result], None]] = {
    "resize": check_resize,
    "loader": check_loaders,
    "augment": check_augment,
    "card": check_card,
    "step": check_step,
    "scaling": check_scaling,
}
