"""How large the parts of an image tower are, before training or after: what attention adds, the gradients it gets."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_la.models.clip import CLIP, model_from_spec
from clip_la.models.spec import ModelSpec

NUM_IMAGES = 2
# Images are noise of this side, enlarged: neighbouring patches are alike, as in photographs.
NOISE_SIDE = 16


def start_scales(spec: ModelSpec, seed: int = 0) -> dict[str, float]:
    """`scales` of a model at its initial weights."""
    return scales(model_from_spec(spec, seed), seed)


def scales(model: CLIP, seed: int = 0) -> dict[str, float]:
    """Root mean squares in the image tower of a model on the CPU, on smooth noise of `seed`, in float32.

    Keys: "branch_first", "branch_middle", "branch_last": what attention adds to the residual stream over what the
    stream holds there; "residual_last": what the last block receives (untrained, the first receives 1); "gradient_q"
    and "gradient_k": gradients of the cosine between two images by the q and k of the middle layer, over that by its v.
    """

    def rms(x: Tensor) -> float:
        return x.detach().square().mean().sqrt().item()

    tower = model.image
    blocks: Any = tower.trunk.blocks
    middle = len(blocks) // 2
    seen: dict[str, Tensor] = {}
    for place, index in (("first", 0), ("middle", middle), ("last", len(blocks) - 1)):
        blocks[index].register_forward_pre_hook(lambda _, args, p=place: seen.update({f"residual_{p}": args[0]}))
        blocks[index].attn.register_forward_hook(lambda _, __, out, p=place: seen.update({f"branch_{p}": out}))
    blocks[middle].attn.qkv.register_forward_hook(
        lambda _, __, out: out.register_hook(lambda gradient: seen.update(gradient=gradient)) and None
    )
    noise = torch.randn(NUM_IMAGES, 3, NOISE_SIDE, NOISE_SIDE, generator=torch.Generator().manual_seed(seed))
    features = F.normalize(tower(F.interpolate(noise, size=model.spec.image_size, mode="bicubic")), dim=-1)
    (features[0] @ features[1]).backward()
    q, k, v = (rms(part) for part in seen.pop("gradient").chunk(3, dim=-1))
    sizes = {name: rms(tensor) for name, tensor in seen.items()}
    scales = {f"branch_{p}": sizes[f"branch_{p}"] / sizes[f"residual_{p}"] for p in ("first", "middle", "last")}
    return scales | {"residual_last": sizes["residual_last"], "gradient_q": q / v, "gradient_k": k / v}
