"""Looks into a trained network: its features by depth, and what on an image its answer hangs on.

Where to look is found by passing one image through and watching, so any network will do that is built of ordinary
modules: stages where a convolutional network halves its resolution, blocks where tokens pass through a stack of equals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np
import torch
from captum.attr import LayerGradCam, Saliency
from numpy.typing import NDArray
from torch import nn

from analysis.attribution import LEAST_GRID, rollout
from analysis.depths import DEPTHS, GRADIENT, HEAD, ROLLOUT

_BATCH = 2


class NoSuchPart(Exception):
    """A network has not what a method looks at; the message says what."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Anatomy:
    """Where to look in a network, by names of its modules."""

    depths: dict[str, str]
    """The module whose output is taken, by depth; without the head's input."""
    head: str
    """The last linear layer, whose input is what the network has made of an image."""
    grids: dict[str, tuple[int, int]]
    """Height and width of the outputs of `depths`, by module; of tokens: those of patches."""
    prefix: int | None
    """Tokens before those of patches; None where the network has none."""

    @property
    def cam_stage(self) -> str | None:
        """The deepest stage of a convolutional network that still says where; None where there is none."""
        fine = [name for name, grid in self.grids.items() if min(grid) >= LEAST_GRID]
        return fine[-1] if fine else None


def dissect(model: nn.Module, image_size: int) -> Anatomy:
    """Finds its parts by passing grey images through.

    Raises:
        NoSuchPart: no linear layer, so there is no head.
    """
    names = {module: name for name, module in model.named_modules()}
    seen: list[tuple[str, tuple[int, ...]]] = []

    def watch(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            seen.append((names[module], tuple(output.shape)))

    device = next(model.parameters()).device
    model.eval()
    with ExitStack() as hooks, torch.inference_mode():
        for module in names:
            hooks.enter_context(module.register_forward_hook(watch))
        model(torch.zeros(_BATCH, 3, image_size, image_size, device=device))
    seen = [(name, shape) for name, shape in seen if shape[0] == _BATCH]  # else patches or windows are the batch
    head = _head(model, names)
    tokens = _token_blocks(model, dict(seen))
    if tokens:
        count = dict(seen)[tokens[0]][1]
        side = isqrt(count)
        prefix = int(getattr(model, "num_prefix_tokens", count - side * side))
        patches = count - prefix
        grid = (isqrt(patches), isqrt(patches)) if isqrt(patches) ** 2 == patches else (1, patches)
        stages, grids, prefix_tokens = tokens, dict.fromkeys(tokens, grid), prefix
    else:
        grids = _stages(model, seen, head)
        stages, prefix_tokens = list(grids), None
    depths = {}
    for number, depth in enumerate(DEPTHS[:-1], 1):
        if stages:
            depths[depth] = stages[-(-number * len(stages) // 4) - 1]
    return Anatomy(
        depths=depths, head=head, grids={name: grids[name] for name in depths.values()}, prefix=prefix_tokens
    )


def _head(model: nn.Module, names: dict[nn.Module, str]) -> str:
    get_classifier: Any = getattr(model, "get_classifier", None)  # timm's
    chosen = get_classifier() if get_classifier is not None else None
    linear = [module for module in names if isinstance(module, nn.Linear)]
    if isinstance(chosen, nn.Linear):
        return names[chosen]
    if not linear:
        raise NoSuchPart("no linear layer, so no head whose input could be looked at")
    return names[linear[-1]]


def _token_blocks(model: nn.Module, shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """The longest stack of equal modules that hand on tokens [B, T, D]; empty where there is none."""
    best: list[str] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.Sequential | nn.ModuleList) or len(module) < 2:
            continue
        children = [f"{name}.{child}" if name else child for child, _ in module.named_children()]
        found = {shapes.get(child, ()) for child in children}
        equal = len({type(child) for child in module}) == 1 and len(found) == 1 and len(next(iter(found))) == 3
        if equal and len(children) > len(best):
            best = children
    return best


def _stages(model: nn.Module, seen: Sequence[tuple[str, tuple[int, ...]]], head: str) -> dict[str, tuple[int, int]]:
    """The last module at every resolution and its grid, in the order of the pass; empty where images are not laid out
    [B, C, H, W]. What lies within a block that ends at a lower resolution is no end of a stage, nor is what comes
    after the global pooling."""
    shapes = {name: shape for name, shape in seen if len(shape) == 4}
    if any(shape[2] != shape[3] for shape in shapes.values()):
        return {}
    modules = dict(model.named_modules())
    around = head.rpartition(".")[0]
    if any(isinstance(module, nn.Conv2d) for module in modules[around].modules()):
        around = ""

    def ends_a_stage(name: str, grid: tuple[int, ...]) -> bool:
        parts = name.split(".")
        above = [".".join(parts[:i]) for i in range(1, len(parts))]
        pooled = grid == (1, 1) and not any(True for _ in modules[name].parameters())
        inside = any(
            one in shapes and shapes[one][2:] != grid and not isinstance(modules[one], nn.Sequential) for one in above
        )
        return not pooled and not inside and not (around and (name == around or around in above))

    last: dict[tuple[int, int], str] = {}
    for name, shape in seen:
        if name and name in shapes and len(shape) == 4 and ends_a_stage(name, shape[2:]):
            last[shape[2], shape[3]] = name
    return {name: grid for grid, name in sorted(last.items(), reverse=True)}


class Taps:
    """Features by depth of the images that pass through a model, collected until `taken`.

    Args:
        model: in evaluation mode.
        anatomy: of it.
    """

    def __init__(self, model: nn.Module, anatomy: Anatomy) -> None:
        self._prefix = anatomy.prefix
        self._parts: dict[str, list[torch.Tensor]] = {depth: [] for depth in (*anatomy.depths, HEAD)}
        modules = dict(model.named_modules())
        self._hooks = [modules[anatomy.head].register_forward_pre_hook(self._head)]
        depths: dict[str, list[str]] = {}
        for depth, name in anatomy.depths.items():
            depths.setdefault(name, []).append(depth)
        self._hooks += [modules[name].register_forward_hook(self._tap(own)) for name, own in depths.items()]

    def _head(self, _: nn.Module, inputs: Any) -> None:
        self._parts[HEAD].append(inputs[0].detach().float().flatten(1).cpu())

    def _tap(self, depths: list[str]) -> Callable[[nn.Module, Any, Any], None]:
        def keep(_: nn.Module, __: Any, output: torch.Tensor) -> None:
            values = output.detach().float()
            pooled = values.mean(dim=(2, 3)) if values.ndim == 4 else values[:, self._prefix :].mean(dim=1)
            for depth in depths:
                self._parts[depth].append(pooled.cpu())

        return keep

    def taken(self) -> dict[str, NDArray[np.float32]]:
        """[n, d] float32 by depth, means over positions (of tokens: over patches), the head's input as it is; the
        model is let alone from here on."""
        for hook in self._hooks:
            hook.remove()
        return {depth: torch.cat(parts).numpy() for depth, parts in self._parts.items()}


def layer_of(anatomy: Anatomy, method: str) -> str:
    """Where a method looks, for people.

    Raises:
        NoSuchPart: the network has no such place, or one too coarse to say where.
    """
    if method == GRADIENT:
        return "input"
    if anatomy.prefix is not None:
        height, width = next(iter(anatomy.grids.values()))
        if min(height, width) < LEAST_GRID:
            raise NoSuchPart(f"{height} x {width} patches, fewer than {LEAST_GRID} x {LEAST_GRID} say nothing of where")
        return "all blocks" if method == ROLLOUT else anatomy.depths["4/4"]
    if method == ROLLOUT:
        raise NoSuchPart("no attention over patches")
    if anatomy.cam_stage is None:
        raise NoSuchPart(f"no stage of {LEAST_GRID} x {LEAST_GRID} positions or more")
    return anatomy.cam_stage


def maps(
    model: nn.Module, anatomy: Anatomy, method: str, images: torch.Tensor, target: torch.Tensor
) -> NDArray[np.float64]:
    """What the score of a class hangs on, as a method sees it.

    Args:
        model: in evaluation mode; weights stay as they are.
        anatomy: of it.
        method: `gradient` (largest |derivative| over the colours), `grad-cam` (without its negative part) or `rollout`
            (of attention, whatever the class).
        images: [B, 3, S, S] float32, normalised.
        target: [B] int64, positions of the classes.

    Returns:
        [B, h, w] float64, not negative.

    Raises:
        NoSuchPart: the network has not what the method looks at.
    """
    layer = layer_of(anatomy, method)
    if method == ROLLOUT:
        return _rolled_out(model, anatomy, images)
    images = images.detach().clone().requires_grad_()
    if method == GRADIENT:
        found = Saliency(model).attribute(images, target=target, abs=True).amax(dim=1)
    elif anatomy.prefix is None:
        module = model.get_submodule(layer)
        found = LayerGradCam(model, module).attribute(images, target=target, relu_attributions=True)[:, 0]
    else:
        with _tokens_as_grid(model, layer, anatomy) as module:
            found = LayerGradCam(model, module).attribute(images, target=target, relu_attributions=True)[:, 0]
    values: NDArray[np.float64] = found.detach().double().cpu().numpy()
    return values


class _Grid(nn.Module):
    """Tokens to an image of patches; the others wait here."""

    def __init__(self, prefix: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.prefix, self.grid = prefix, grid
        self.others: torch.Tensor | None = None

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        self.others = tokens[:, : self.prefix]
        patches = tokens[:, self.prefix :].transpose(1, 2)
        return patches.reshape(*patches.shape[:2], *self.grid)


class _Tokens(nn.Module):
    """Back again."""

    def __init__(self, grid: _Grid) -> None:
        super().__init__()
        self.waiting = [grid]  # not a submodule of this one

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        others = self.waiting[0].others
        assert others is not None
        return torch.cat([others, image.flatten(2).transpose(1, 2)], dim=1)


@contextmanager
def _tokens_as_grid(model: nn.Module, layer: str, anatomy: Anatomy) -> Iterator[nn.Module]:
    """Lays a block's patches out as an image where its attention takes them in, where Grad-CAM can see them: the
    block's own patches hardly reach a head that reads the class token. That is behind its first LayerNorm, or at its
    entry where LayerNorm comes after attention (`norm_first` is false, as in torch's own encoder layer)."""
    block = model.get_submodule(layer)
    grid = _Grid(anatomy.prefix or 0, next(iter(anatomy.grids.values())))
    place, laid_out = layer, nn.Sequential(grid, _Tokens(grid), block)
    if getattr(block, "norm_first", True):
        name = next((name for name, module in block.named_modules() if isinstance(module, nn.LayerNorm)), None)
        if name is None:
            raise NoSuchPart("no LayerNorm in the last block")
        place = f"{layer}.{name}"
        laid_out = nn.Sequential(model.get_submodule(place), grid, _Tokens(grid))
    own = model.get_submodule(place)
    model.set_submodule(place, laid_out)
    try:
        yield grid
    finally:
        model.set_submodule(place, own)


def attention(model: nn.Module, images: torch.Tensor) -> list[NDArray[np.float64]]:
    """Every layer's attention, mean over heads: [B, T, T] each, in the order of the pass.

    Raises:
        NoSuchPart: the network has no attention whose maps can be read.
    """
    layers: list[Any] = [
        module for module in model.modules() if hasattr(module, "fused_attn") and hasattr(module, "attn_drop")
    ]
    if not layers:
        raise NoSuchPart("no attention whose maps can be read (timm's attention layers have them)")
    found: list[NDArray[np.float64]] = []
    fused = [layer.fused_attn for layer in layers]

    def keep(_: nn.Module, inputs: Any) -> None:
        found.append(inputs[0].detach().double().mean(dim=1).cpu().numpy())

    with ExitStack() as hooks, torch.inference_mode():
        for layer in layers:
            layer.fused_attn = False  # the fused kernel never holds a map
            hooks.enter_context(layer.attn_drop.register_forward_pre_hook(keep))
        try:
            model(images)
        finally:
            for layer, was in zip(layers, fused, strict=True):
                layer.fused_attn = was
    return found


def _rolled_out(model: nn.Module, anatomy: Anatomy, images: torch.Tensor) -> NDArray[np.float64]:
    layers = attention(model, images)
    prefix, grid = anatomy.prefix or 0, next(iter(anatomy.grids.values()))
    shapes = {layer.shape[1:] for layer in layers}
    if shapes != {(prefix + grid[0] * grid[1],) * 2}:
        raise NoSuchPart(f"attention over {', '.join(map(str, sorted(shapes)))}, not over all tokens in every layer")
    rolled = np.stack([rollout(np.stack([layer[i] for layer in layers])) for i in range(len(images))])
    read = rolled[:, 0] if prefix else rolled.mean(axis=1)  # the class token's, or what a mean over tokens reads
    found: NDArray[np.float64] = read[:, prefix:].reshape(len(images), *grid)
    return found
