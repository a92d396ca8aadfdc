"""Shares from memory, more after an out-of-memory, machines in words; no Ray process."""

from __future__ import annotations

import pytest

from trainable.costs import CUDA_CONTEXT_BYTES
from trainable.opening import memory_cap
from tuner.cost import Cost
from tuner.resources import GIB, HEADROOM, Bundle, Node, ResourceError, Resources, described, share_for, shares_to_try

CARD = Node(cpus=24, gpus=2, memory_bytes=100 * GIB, gpu_memory_bytes=24 * GIB)


def cost(memory_gib: float) -> Cost:
    return Cost(
        steps=1,
        num_parameters=1,
        flops=1.0,
        evaluated_images=1,
        memory_bytes=memory_gib * GIB,
        seconds=1.0,
        busy_s=0.0,
        basis="measured",
    )


@pytest.mark.parametrize(("peak_gib", "parts"), [(20.0, 1), (10.0, 2), (4.0, 4), (2.0, 8), (1.0, 14), (40.0, 1)])
def test_a_share_holds_its_peak_with_room_and_the_context(peak_gib: float, parts: int) -> None:
    share = share_for(peak_gib * GIB, 24 * GIB)
    assert int(1 / share) == parts and parts * share <= 1
    if parts > 1:
        assert share * 24 * GIB >= peak_gib * GIB * HEADROOM + CUDA_CONTEXT_BYTES - 24 * GIB * 1e-4
        assert memory_cap(share, 24 * GIB) * 24 * GIB >= peak_gib * GIB, "the cap must not bite what was measured"


def test_caps_and_contexts_of_all_neighbours_fit_the_card() -> None:
    for parts in range(2, 15):
        share = int(10_000 / parts) / 10_000
        taken = parts * (memory_cap(share, 24 * GIB) * 24 * GIB + CUDA_CONTEXT_BYTES)
        assert taken <= 24 * GIB + 1


def test_every_run_gets_the_share_of_its_own_peak() -> None:
    resources = Resources([CARD], cpus=1, gpu_share=None, costs={"small": cost(2), "large": cost(10), "unknown": None})
    shares = {name: resources.bundle(name).share for name in ("small", "large", "unknown")}
    assert shares == {"small": 0.125, "large": 0.5, "unknown": 1.0}
    assert resources.slots() == 16 and resources.uses_gpus() and resources.from_memory


@pytest.mark.parametrize(
    ("runs", "cards", "parts"),
    [(24, 1, [1, 2, 3, 4, 5, 6, 7, 8]), (24, 8, [1, 2, 3]), (9, 8, [1, 2]), (24, 64, [1]), (0, 1, [1])],
)
def test_least_shares_go_from_one_run_a_card_to_all_at_once(runs: int, cards: int, parts: list[int]) -> None:
    assert [int(1 / share + 1e-3) for share in shares_to_try(runs, cards)] == parts


def test_a_least_share_is_for_shares_that_follow_from_memory() -> None:
    costs = {"small": cost(2), "large": cost(10)}
    shares = [
        [Resources([CARD], cpus=1, gpu_share=given, costs=costs, at_least=1 / 3).bundle(name).share for name in costs]
        for given in (None, 0.125)
    ]
    assert shares == [[1 / 3, 0.5], [0.125, 0.125]]


def test_logical_cards_are_taken_whole_unless_a_share_is_given() -> None:
    logical = Node(cpus=4, gpus=2, memory_bytes=GIB)
    assert Resources([logical], cpus=1, gpu_share=None, costs={"a": cost(1)}).bundle("a").share == 1.0
    assert Resources([logical], cpus=1, gpu_share=1 / 3, costs={"a": cost(1)}).slots() == 4
    assert Resources([logical], cpus=1, gpu_share=0.0, costs={"a": cost(1)}).bundle("a").share == 0.0


def test_an_out_of_memory_doubles_the_share_up_to_a_whole_card() -> None:
    resources = Resources([CARD], cpus=1, gpu_share=0.25, costs={"a": cost(1), "b": cost(1)})
    asked = [resources.more_memory("a") for _ in range(3)]
    assert [bundle.share if bundle else None for bundle in asked] == [0.5, 1.0, None]
    assert resources.bundle("a").share == 1.0 and resources.bundle("b").share == 0.25, "the neighbour keeps its own"


def test_on_the_cpu_an_out_of_memory_sets_more_ram_aside() -> None:
    node = Node(cpus=4, gpus=0, memory_bytes=8 * GIB)
    resources = Resources([node], cpus=1, gpu_share=None, costs={"a": cost(1)})
    asked = [resources.more_memory("a") for _ in range(3)]
    assert [bundle.memory_bytes / GIB if bundle else None for bundle in asked] == [4, 8, None]


def test_ram_is_set_aside_only_where_it_could_run_short() -> None:
    roomy, tight = (Node(cpus=4, gpus=0, memory_bytes=size * GIB) for size in (16, 8))
    costs = {"a": cost(3), "b": cost(1)}
    assert Resources([roomy], cpus=1, gpu_share=None, costs=costs).bundle("a").as_ray() == {"CPU": 1.0}
    short = Resources([tight], cpus=1, gpu_share=None, costs=costs)
    assert short.bundle("a").as_ray() == {"CPU": 1.0, "memory": 3.0 * GIB}
    near = Resources([tight], cpus=1, gpu_share=None, costs={"a": cost(2.9), "b": cost(2.8)})
    assert near.bundle("a") == near.bundle("b"), "equal bundles let workers be reused"
    huge = Resources([tight], cpus=1, gpu_share=None, costs={"a": cost(100)})
    assert huge.bundle("a").memory_bytes == 8 * GIB, "a guess must not make a run impossible"


@pytest.mark.parametrize(
    ("share", "gpus", "slots"),
    [
        (0.25, 1, 4),
        (0.4, 2, 4),
        (0.6, 2, 2),
        (0.34, 1, 2),
        (1 / 3, 1, 3),
        (0.33, 1, 3),
        (0.3333, 1, 3),
        (1.0, 2, 2),
        (2.0, 3, 1),
    ],
)
def test_fractions_never_straddle_cards(share: float, gpus: float, slots: int) -> None:
    """The numbers are those that Ray 2.60 places, seen with logical GPUs."""
    node = Node(cpus=64, gpus=gpus, memory_bytes=GIB)
    assert Resources([node], cpus=1, gpu_share=share, costs={"a": None}).slots() == slots


def test_cores_limit_too_and_machines_are_counted_one_by_one() -> None:
    nodes = [Node(cpus=cpus, gpus=0, memory_bytes=float("inf")) for cpus in (3, 5, 1)]
    assert Resources(nodes, cpus=2, gpu_share=None, costs={"a": None}).slots() == 1 + 2


def test_what_no_machine_has_is_said() -> None:
    nodes = [Node(cpus=2, gpus=0, memory_bytes=GIB), Node(cpus=4, gpus=1, memory_bytes=GIB)]
    with pytest.raises(ResourceError, match=r"a trial asks for 8 CPUs and 0 GPUs, which no machine of the cluster has"):
        Resources(nodes[:1], cpus=8, gpu_share=None, costs={"a": None})
    with pytest.raises(ResourceError, match=r"\(2 CPUs and 0 GPUs; 4 CPUs and 1 GPUs\); lower --cpus-per-trial or"):
        Resources(nodes, cpus=1, gpu_share=2.0, costs={"a": None})
    with pytest.raises(ResourceError, match=r"--gpu-share 0.5: the cluster has no GPU; leave it out or set 0"):
        Resources(nodes[:1], cpus=1, gpu_share=0.5, costs={"a": None})


def test_machines_are_described_in_words() -> None:
    (node,) = described("gpus=2,gpu_memory_gib=24,cpus=24")
    assert (node.cpus, node.gpus, node.gpu_memory_bytes) == (24, 2, 24 * GIB)
    assert len(described("nodes=3, cpus=4,memory_gib=16")) == 3
    assert described("cpus=4,gpus=1,gpu_memory_gib=80,gpu_tflops=100")[0].gpu_flops == 1e14


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpu=2", r'--on gpu=2: "gpu=2" is not one of nodes=N, cpus=N, gpus=N, gpu_memory_gib=N'),
        ("cpus=x", r'cpus must be a number, got "x"'),
        ("cpus=1.5", r"cpus must be a whole number from 0, got 1.5"),
        ("cpus=-1", r"cpus must be a whole number from 0, got -1"),
        ("gpus=1,gpu_memory_gib=24", r"cpus and nodes must be at least 1"),
        ("cpus=4,gpus=1", r"gpu_memory_gib=N is missing, the memory of one card"),
        ("cpus", r'"cpus" is not one of'),
    ],
)
def test_a_bad_description_is_refused(text: str, message: str) -> None:
    with pytest.raises(ResourceError, match=message):
        described(text)


def test_a_bundle_is_what_a_placement_group_takes() -> None:
    assert Bundle(cpus=2, share=0.25, memory_bytes=0).as_ray() == {"CPU": 2.0, "GPU": 0.25}
