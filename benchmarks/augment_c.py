"""`augment.c` compiled by the system's compiler when it is needed, and called through ctypes."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasets.normalize import Normalization
from datasets.plan import BatchPlan

SOURCE = Path(__file__).with_name("augment.c")
FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-shared", "-fPIC")
ARRAYS = {
    "index": np.int32,
    "top": np.int16,
    "left": np.int16,
    "flip": np.bool_,
    "jitter": np.int32,
    "jitter_order": np.int8,
    "turn": np.int32,
    "erase_box": np.int16,
    "partner": np.int32,
    "blend": np.float32,
    "mix_box": np.int16,
}
"""Those of a `BatchPlan`, in the order of the C struct."""
Apply = Callable[[NDArray[np.uint8], BatchPlan, Normalization, NDArray[np.float32]], None]


class _Plan(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("images", *ARRAYS, "scale", "bias")),
        *((name, ctypes.c_int64) for name in ("num", "height", "width", "size")),
    )


def find_compiler() -> str | None:
    """The C compiler of CC, or the system's; None where there is none."""
    return shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")


def compiled(compiler: str, folder: Path) -> Apply:
    """Compiles the kernel into a folder and loads it.

    Returns:
        A function as `datasets.cpu.apply_plan`.

    Raises:
        RuntimeError: the compiler refused.
    """
    library = folder / "augment.so"
    command = [compiler, *FLAGS, "-o", str(library), str(SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()}")
    function = ctypes.CDLL(str(library)).apply_plan
    function.restype = None

    def apply_plan(images: NDArray[np.uint8], plan: BatchPlan, rule: Normalization, out: NDArray[np.float32]) -> None:
        arrays = [getattr(plan, name) for name in ARRAYS]
        assert all(array.dtype == dtype for array, dtype in zip(arrays, ARRAYS.values(), strict=True)), (
            "as in the struct"
        )
        arrays = [np.ascontiguousarray(array) for array in (images, *arrays, rule.scale, rule.bias)]
        num, size = len(plan.index), plan.out_size
        seen = np.empty((num + 1, 3, size, size), np.uint8)
        given = _Plan(*(array.ctypes.data for array in arrays), num, *images.shape[1:3], size)
        function(ctypes.byref(given), ctypes.c_void_p(seen.ctypes.data), ctypes.c_void_p(out.ctypes.data))

    return apply_plan
