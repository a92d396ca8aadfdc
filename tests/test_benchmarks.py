"""Kept benchmark results say what was measured, when and on what; every benchmark runs, and what it compares is alike."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kept_results import CHECKS, Result, check_head, check_trials, check_versions
from numpy.typing import NDArray
from toy import augment

from benchmarks import augment_c, card, measuring, peers, scaling
from benchmarks.arms import ARMS, STUDY_ARMS, augmentation
from benchmarks.augment import FILES, count_lines, verdict
from benchmarks.loader_memory import map_of, private_bytes
from benchmarks.made_images import random_images
from benchmarks.measuring import Failed, Watch, environment, instructions, run_together, spread
from datasets.cpu import apply_plan
from datasets.normalize import normalization
from datasets.plan import draw_plan, epoch_order

RESULTS = sorted((Path(__file__).resolve().parent.parent / "benchmarks" / "results").glob("*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_names_its_benchmark_machine_and_load(path: Path, root: Path) -> None:
    result = check_head(path, root)
    CHECKS.get(result["benchmark"], lambda result: None)(result)


def test_there_are_results() -> None:
    assert {path.name.split("-")[0] for path in RESULTS} >= {"analysis", "calibrate", "resize", "schedule"}


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
    check_versions(result, {"python", "numpy", "scipy", "scikit-learn", "pyarrow", "matplotlib"})
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


def run(root: Path, out: Path, *command: str) -> tuple[Result, str]:
    """A benchmark as a person types it: its result, checked, and what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", *command, "--out", str(out)],
        cwd=root,
        env=environment(1),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("*.json")
    result = check_head(path, root)
    CHECKS[result["benchmark"]](result)
    return result, done.stdout


NOT_IN_CI = pytest.mark.skipif(os.environ.get("CI") == "true", reason="minutes long: `make test` outside CI runs it")


@pytest.mark.slow
def test_resizing_runs(root: Path, tmp_path: Path) -> None:
    result, shown = run(root, tmp_path, "benchmarks.resize", "--images", "200", "--rounds", "2")
    assert result["batches"]["images"] == 200
    assert "bicubic_opencv_64_to_224" in shown and "resized_and_jpeg" in shown


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_loaders_run(root: Path, data_path: Path, tmp_path: Path) -> None:
    small = ["--datasets", "digits", "--arms", "cutmix", "--repeats", "1", "--images", "600", "--trials", "2"]
    measured = "ours,ours-bf16,torchvision-2,timm-fast,gather,ffcv-1"
    result, shown = run(root, tmp_path, "benchmarks.loader", "--data", str(data_path), *small, "--loaders", measured)
    found = {one["loader"]: one for one in result["results"]}
    assert not result["failed"] and {"ours", "torchvision-2", "timm-fast", "gather"} <= found.keys()
    assert found.keys() | result["skipped"].keys() == set(measured.split(","))
    check_trials(result["trials"])
    assert "DataLoader+v2, 2 workers" in shown and "written by one thread" in shown


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_augment_runs(root: Path, tmp_path: Path) -> None:
    small = ["--sizes", "8", "--arms", "default", "mixup", "--repeats", "1", "--images", "512", "--batches", "2"]
    result, shown = run(root, tmp_path, "benchmarks.augment", *small, "--seconds", "0.1")
    assert [(row["image_size"], row["arm"]) for row in result["rows"]] == [(8, "default"), (8, "mixup")]
    assert result["verdict"] in shown


@pytest.mark.slow
@pytest.mark.timeout(900)
@NOT_IN_CI
def test_step_runs(root: Path, tmp_path: Path) -> None:
    small = ["--models", "small_vit", "--batch", "8", "--small-batch", "8", "--repeats", "1", "--steps", "1"]
    result, shown = run(root, tmp_path, "benchmarks.step", *small, "--warm-up", "1")
    assert {"naive", "ours"} <= {row["arm"] for row in result["throughput"]["rows"]}
    assert not result["throughput"]["failed"] and "x naive" in shown
    work = result["enforcement"]["work"]
    assert {one["threads_at_work"] for one in work.values()} == {1}, "also where the model asks torch for two"
    if result["cores"] > 1:
        assert work["numpy (BLAS)"]["threads_at_work_unkept"] > 1, "the same work spreads where nothing keeps it"


@pytest.mark.slow
@pytest.mark.timeout(900)
@NOT_IN_CI
def test_the_cards_benchmark_runs_on_a_cpu(root: Path, tmp_path: Path) -> None:
    small = ["--device", "cpu", "--models", "small_vit", "--sizes", "8", "--arms", "naive,float32", "--together", "1,2"]
    short = ["--batch", "8", "--images", "64", "--seconds", "0.1", "--warm-up", "1", "--repeats", "1"]
    result, shown = run(root, tmp_path, "benchmarks.card", *small, *short)
    assert len(result["loader"]) == 8 and len(result["cells"]) == len(result["packing"]) == 2
    assert not [row["failed"] for part in ("loader", "cells", "packing") for row in result[part] if "failed" in row]
    assert result["grid"] is None and "the study's loop" in shown and "trials at once" in shown


def test_the_grid_is_predicted_from_the_best_packing_of_every_cell() -> None:
    def packed(model: str, size: int, together: int, rate: float) -> dict[str, Any]:
        return {"model": model, "image_size": size, "together": together, "images_per_s": {"median": rate}}

    rows = [packed(model, size, count, 1e4 * count) for model in card.MODELS for size in (32, 64) for count in (1, 4)]
    grid = card._grid({"packing": [*rows, {"model": card.MODELS[0], "image_size": 32, "together": 8, "failed": "no"}]})
    assert grid is not None and {cell["together"] for cell in grid["cells"]} == {4}
    images = 2 * 6 * 50 * (50_000 + 100_000 + 2 * 10_000 / 3)
    assert grid["minutes"] == pytest.approx(images / 4e4 / 60, abs=0.03)
    assert card._grid({"packing": rows[:6]}) is None, "a cell is missing"


@pytest.mark.slow
@pytest.mark.timeout(900)
@NOT_IN_CI
def test_scaling_runs(root: Path, tmp_path: Path) -> None:
    small = ["--scales", "1", "2", "--images", "256", "--seeds", "1", "--repeats", "1"]
    result, shown = run(root, tmp_path, "benchmarks.scaling", *small)
    costs = {row["what"]: row for row in result["rows"]}
    assert costs["tuner: a plan"]["sizes"] == costs["analysis: T1 from files"]["sizes"] == [24, 48]
    assert 0.9 < costs["store: bytes"]["exponent"] < 1.1
    assert costs["tuner: peak memory of a plan"]["costs"][0] < 300, "neither torch nor Ray"
    assert "of the last two" in shown


def test_a_calibration_measures_a_step() -> None:
    from benchmarks.calibrate import measure

    assert 0 < measure("small_vit", 8, 4, 1) < 30


class TestMeasuring:
    def test_a_process_that_ends_without_a_report_is_told_by_its_last_line(self) -> None:
        with pytest.raises(Failed, match="No module named"):
            run_together([["no_such_module"]], threads=1)

    def test_threads_are_set_or_left_to_the_libraries(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OMP_NUM_THREADS", "7")
        assert environment(2)["OMP_NUM_THREADS"] == environment(2)["NUMBA_NUM_THREADS"] == "2"
        assert not set(measuring.THREAD_VARIABLES) & environment(None).keys()

    def test_what_this_process_does_is_nobody_elses_load(self) -> None:
        if not Path("/proc/stat").is_file():
            pytest.skip("other load is read from Linux's /proc/stat")
        watch = Watch()
        total = sum(number * number for number in range(3_000_000))
        watched = watch.stop()
        assert total and watched.other_load is not None
        assert watched.other_load <= (os.cpu_count() or 1) + 0.2 and watched.wall_s > 0
        assert watched.clean == (watched.other_load < measuring.CLEAN_BELOW)

    def test_a_spread_keeps_its_repeats(self) -> None:
        assert spread([3.0, 1.00004, 2.0]) == {"median": 2.0, "low": 1.0, "high": 3.0, "repeats": [3.0, 1.0, 2.0]}

    def test_growth_is_the_slope_on_logarithmic_axes(self) -> None:
        sizes = [1, 10, 100]
        assert scaling.growth(sizes, [5, 5, 5]) == pytest.approx(0)
        assert scaling.growth(sizes, [2, 20, 200]) == pytest.approx(1)
        assert scaling.growth(sizes, [1, 100, 10_000]) == pytest.approx(2)

    def test_instruction_sets_are_those_of_the_processor(self) -> None:
        assert isinstance(instructions(), tuple)

    def test_memory_of_a_map_is_found_by_its_file(self, data_path: Path) -> None:
        if not Path("/proc/self/smaps_rollup").is_file():
            pytest.skip("memory is read from Linux's /proc/self/smaps_rollup")
        path = (data_path / "digits" / "train" / "images.npy").resolve()
        images = np.load(path, mmap_mode="r")
        assert images.sum() > 0
        found = map_of(path)
        assert found["private_bytes"] == 0 or found["resident_bytes"] >= found["private_bytes"] > 0
        assert images.nbytes <= found["resident_bytes"] < private_bytes()


NUM, SIDE, PAD = 40, 8, 2
PEERS: dict[str, Callable[[peers.Work], peers.Epoch]] = {
    "torchvision": partial(peers.torchvision, workers=0),
    "torchvision with workers": partial(peers.torchvision, workers=2),
    "timm": partial(peers.timm, fast=False),
    "timm fast": partial(peers.timm, fast=True),
    "airbench": peers.airbench,
    "gather": peers.gather,
}


def work(images: NDArray[np.uint8], **fields: Any) -> peers.Work:
    return peers.Work(
        images=images,
        labels=np.arange(len(images)) % 10,
        num_classes=10,
        mean=(0.5, 0.25, 0.125),
        std=(0.25, 0.5, 0.125),
        augment=augment(**fields),
        batch_size=10,
    )


@pytest.fixture(params=PEERS)
def peer(request: pytest.FixtureRequest) -> Callable[[peers.Work], NDArray[np.float32]]:
    """One epoch of a loader by others, [N, 3, S, S], in the order of the images' first values."""

    def epoch(given: peers.Work) -> NDArray[np.float32]:
        batches = PEERS[request.param](given)
        list(batches())
        found = torch.cat([batch.clone() for batch in batches()]).numpy()
        return found[found[:, 0].max(axis=(1, 2)).argsort(kind="stable")]

    return epoch


def shades() -> NDArray[np.uint8]:
    """Images of one grey each, from 40 up."""
    return np.broadcast_to(np.arange(40, 40 + NUM, dtype=np.uint8)[:, None, None, None], (NUM, SIDE, SIDE, 3)).copy()


def normalised(values: NDArray[np.uint8], given: peers.Work) -> NDArray[np.float64]:
    found: NDArray[np.float64] = (values / 255 - np.array(given.mean)) / np.array(given.std)
    return found


class TestPeers:
    """A comparison is one only where all do the same work."""

    def test_every_image_is_normalised_once_an_epoch(self, peer: Any) -> None:
        given = work(shades())
        expected = normalised(given.images, given).transpose(0, 3, 1, 2)
        np.testing.assert_allclose(peer(given), expected, atol=1e-5)

    def test_mirrors(self, peer: Any) -> None:
        images = shades()
        images[:, :, 0] = 0
        given = work(images, hflip_prob=1.0)
        expected = normalised(images[:, :, ::-1], given).transpose(0, 3, 1, 2)
        np.testing.assert_allclose(peer(given), expected, atol=1e-5)

    def test_crops_show_the_image_and_black(self, peer: Any) -> None:
        torch.manual_seed(0)
        given = work(shades(), pad_crop=PAD)
        black = normalised(np.zeros(3, np.uint8), given)[0]
        lost = 0
        for found, value in zip(peer(given)[:, 0], normalised(given.images, given)[:, 0, 0, 0], strict=True):
            is_black = np.isclose(found, black, atol=1e-5)
            assert np.isclose(found[~is_black], value, atol=1e-5).all()
            rows, columns = (~is_black).any(axis=1), (~is_black).any(axis=0)
            assert rows.sum() >= SIDE - PAD and columns.sum() >= SIDE - PAD, "a window reaches at most over the padding"
            assert (is_black == ~(rows[:, None] & columns)).all(), "black is a border"
            lost += int(is_black.any())
        assert lost > NUM / 2

    @pytest.mark.parametrize("mix", ["mixup", "cutmix"])
    def test_mixes(self, peer: Any, mix: str) -> None:
        np.random.seed(0)  # what timm mixes by
        torch.manual_seed(0)
        given = work(shades(), mix=mix, mix_alpha=1.0)
        found, plain = peer(given), normalised(given.images, given)[:, 0, 0, 0]
        assert found.shape == (NUM, 3, SIDE, SIDE) and plain.min() - 1e-5 <= found[:, 0].min()
        assert found[:, 0].max() <= plain.max() + 1e-5
        several = np.array([len(np.unique(image[0].round(5))) > 1 for image in found])
        assert several.any() == (mix == "cutmix"), "MixUp of plain images is plain, CutMix shows two"


def test_arms_are_those_of_the_grid_and_the_peers_know_theirs() -> None:
    assert augmentation("default").mix == "none" and augmentation("default").pad_crop == 0
    assert [augmentation(arm).mix for arm in STUDY_ARMS] == ["none", "none", "mixup", "cutmix"]
    assert all(augmentation(arm).jitter is None for arm in STUDY_ARMS) and augmentation(ARMS[-1]).jitter is not None


@pytest.fixture(scope="module")
def in_c(tmp_path_factory: pytest.TempPathFactory) -> Iterator[augment_c.Apply]:
    """The kernel of `augment.c`."""
    if (compiler := augment_c.find_compiler()) is None:
        pytest.skip("needs a C compiler; set CC, or install gcc or clang")
    yield augment_c.compiled(compiler, tmp_path_factory.mktemp("c"))


@pytest.mark.parametrize("side", [8, 13])
@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("fields", [{}, {"erase_prob": 0.7, "mix": "switch", "mix_alpha": 1.0, "mix_scope": "sample"}])
def test_the_kernel_in_c_gives_the_same_bits(
    in_c: augment_c.Apply, side: int, arm: str, fields: dict[str, Any]
) -> None:
    """Or it could not be compared."""
    spec = augmentation(arm).model_copy(update=fields)
    store = random_images(side, 64).train
    rule, index = normalization(spec, store.manifest, training=True), epoch_order(1, 0, 64)[:48]
    plan = draw_plan(spec, 1, 0, 0, index, side)
    expected, found = (np.full((48, 3, side, side), fill, np.float32) for fill in (1, 2))
    apply_plan(store.images, plan, rule, torch.from_numpy(expected))
    in_c(store.images, plan, rule, found)
    assert found.tobytes() == expected.tobytes()


class TestVerdict:
    LINES = dict.fromkeys(FILES, 100)

    def test_what_needs_no_compiler_is_kept_while_it_is_near(self) -> None:
        said = verdict({"numba": [4.0, 9.0], "torch": [1.0, 1.0], "C": [6.0, 9.0]}, self.LINES)
        assert said.startswith(
            "The project keeps numba: a core makes 4 to 9 times (mean 6) as many images as with torch"
        )
        assert "0.67 to 1 times (mean 0.82) as many images as with C" in said and "1.2 times as fast as numba" in said

    def test_numbers_that_speak_against_it_are_told(self) -> None:
        assert "C should be kept" in verdict({"numba": [4.0], "torch": [1.0], "C": [9.0]}, self.LINES)
        assert "torch should be kept" in verdict({"numba": [4.0], "torch": [5.0], "C": [8.0]}, self.LINES)
        assert verdict({"numba": [4.0], "torch": [1.0]}, self.LINES).startswith("The project keeps numba: a core")

    def test_lines_are_those_of_code(self) -> None:
        assert all(50 < count_lines(name) < 450 for name in FILES)
