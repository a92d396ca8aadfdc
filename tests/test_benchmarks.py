"""Kept benchmark results say what was measured, when and on what."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path

import pytest

RESULTS = sorted((Path(__file__).resolve().parent.parent / "benchmarks" / "results").glob("*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_names_its_benchmark_machine_and_load(path: Path) -> None:
    result = json.loads(path.read_text(encoding="utf-8"))
    assert path.name.startswith(f"{result['benchmark']}-")
    assert (path.parent.parent / f"{result['benchmark']}.py").is_file()
    assert datetime.fromisoformat(result["measured_at"]).tzinfo is not None
    assert result["device"] and result["threads"] >= 1 and result["load"] >= 0


def test_there_are_results() -> None:
    assert {path.name.split("-")[0] for path in RESULTS} >= {"analysis", "calibrate", "loader", "resize", "schedule"}


def test_the_cost_model_holds_the_constants_that_were_fitted() -> None:
    """What `tuner/cost.py` weighs its counts with is the newest calibration, rounded to two digits."""
    from tuner.cost import SECONDS_PER_UNIT

    newest = max((path for path in RESULTS if path.name.startswith("calibrate-")), key=lambda path: path.name)
    fitted = json.loads(newest.read_text(encoding="utf-8"))["seconds_per_unit"]
    assert set(fitted) == set(SECONDS_PER_UNIT)
    assert all(abs(SECONDS_PER_UNIT[term] / value - 1) < 0.05 for term, value in fitted.items())


@pytest.mark.parametrize(
    "path", [path for path in RESULTS if path.name.startswith("analysis-")], ids=lambda path: path.stem
)
def test_a_measurement_of_the_analysis_says_what_each_command_took(path: Path) -> None:
    result = json.loads(path.read_text(encoding="utf-8"))
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", result["commit"])
    assert {"python", "numpy", "scipy", "scikit-learn", "pyarrow", "matplotlib"} <= set(result["versions"])
    paper, many = result["paper"], result["many"]
    assert (paper["runs"], paper["images"], paper["epochs"]) == (120, 10_000, 50)
    assert [many[name]["runs"] for name in many if name != "epochs"] == [1_008, 10_008]
    commands = [paper[name] for name in ("tables", "check", "figures", "bundle", "verify")]
    for runs in ("1008_runs", "10008_runs"):
        commands += [many[runs][name] for name in ("t1_of_files", "compact", "t1_compacted")]
    for measured in commands:
        assert set(measured) == {"wall_s", "user_s", "system_s", "peak_mb"}
        assert len({len(values) for values in measured.values()}) == 1
        assert all(value > 0 for values in measured.values() for value in values)


@pytest.mark.parametrize(
    "path", [path for path in RESULTS if path.name.startswith("resize-")], ids=lambda path: path.stem
)
def test_a_measurement_of_resizing_has_every_rule_beside_pillow(path: Path) -> None:
    result = json.loads(path.read_text(encoding="utf-8"))
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", result["commit"])
    assert {"numpy", "numba", "pillow", "torch", "torchvision"} <= set(result["versions"])
    assert {"bicubic_64_to_224", "bilinear_64_to_224", "bicubic_opencv_64_to_224"} <= set(result["kernels"])
    for name, measured in result["kernels"].items():
        assert set(measured) == {"ours_us"} | (set() if "opencv" in name else {"pillow_us", "torchvision_us"})
        assert all(value > 0 for values in measured.values() for value in values)
    stored = result["batches"]
    assert stored["large_bytes"] > 2e9, "a set that a cache does not hold by chance"
    rates = {"resized_warm", "stored_warm", "resized_cold", "stored_cold", "resized_and_jpeg"}
    assert set(stored["images_per_s"]) == rates and all(min(values) > 0 for values in stored["images_per_s"].values())


@pytest.mark.parametrize(
    "path", [path for path in RESULTS if path.name.startswith("loader-")], ids=lambda path: path.stem
)
def test_a_measurement_of_the_loader_has_every_arm_beside_its_peer(path: Path) -> None:
    result = json.loads(path.read_text(encoding="utf-8"))
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", result["commit"])
    assert (result["image_size"], result["batch"], result["bytes_per_image"]) == (32, 256, 12_288)
    assert min(result["write_bytes_per_s"]) > 0
    for arm in ("default", "crop_flip", "mixup", "cutmix", "jitter_rotate_erase"):
        assert set(result["images_per_s"][arm]) == {"kernel", "loader", "ahead", "peer"}
        assert all(min(values) > 0 for values in result["images_per_s"][arm].values())
        assert min(result[f"{arm}_first_batch_ms"]) > 0
