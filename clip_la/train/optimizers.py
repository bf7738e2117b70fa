"""Optimisers by name, over groups of parameters that share a learning rate and a weight decay.

- `adamw`: AdamW as open_clip sets it up.
- `muon`: Muon (https://kellerjordan.github.io/posts/muon/) for the matrices inside the blocks. It is made for hidden
  layers: embeddings, projections into the common space, vectors and scales stay with AdamW.
"""

import re
from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from clip_la.train.options import OptimOptions

# Names of parameters, whatever stands in front of the tower.
BLOCK = re.compile(r"\b(image\.trunk|text)\.blocks\.(\d+)\.")
STEM = re.compile(r"\b(image\.trunk|text)\.(?:cls_token|pos_embed|patch_embed|norm_pre|\w+_embedding)\b")
# Moonshot's factor (arXiv 2502.16982, Sec. 2.2) gives steps the size of AdamW's: its rate and weight decay carry over.
MUON_SCALE = "match_rms_adamw"


class MuonWithAdamW(torch.optim.Optimizer):
    """torch.optim.Muon for some groups and fused AdamW for the others, as one optimiser with one state.

    Lightning trains by one optimiser, and a run resumes from one state.

    Args:
        groups: of `parameter_groups`, of both kinds; those with `by_muon` hold matrices alone.
        betas, eps: of AdamW.
    """

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float], eps: float) -> None:
        others = [group for group in groups if not group["by_muon"]]
        self._adamw = torch.optim.AdamW(others, betas=betas, eps=eps, fused=True)
        self._muon = torch.optim.Muon([group for group in groups if group["by_muon"]], adjust_lr_fn=MUON_SCALE)
        super().__init__([*self._adamw.param_groups, *self._muon.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both; returns what `closure` does, which computes the gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # load_state_dict replaces groups and state, so the two are handed the present ones each time.
        for part in (self._adamw, self._muon):
            part.param_groups = [group for group in self.param_groups if group["by_muon"] == (part is self._muon)]
            part.state = self.state
            part.step()
        return loss


def make_optimizer(
    parameters: Iterable[tuple[str, nn.Parameter]], options: OptimOptions, *, undecayed: Collection[str]
) -> torch.optim.Optimizer:
    """The optimiser that the options name, over all parameters that train.

    Its groups have `lr_scale` beside the usual: the factor on the schedule's learning rate.

    Args:
        parameters: all of both towers by name, frozen ones too: they count as layers.
        options: rates, weight decay, settings of the optimiser.
        undecayed: names of what weight decay spares.
    """
    groups = parameter_groups(parameters, options, undecayed=undecayed)
    betas = (options.beta1, options.beta2)
    if any(group["by_muon"] for group in groups):
        return MuonWithAdamW(groups, betas, options.eps)
    # Fused on the CPU too: with the token embedding's dense gradient the foreach form takes four times as long there.
    return torch.optim.AdamW(groups, options.lr, betas, options.eps, fused=True)


def parameter_groups(
    parameters: Iterable[tuple[str, nn.Parameter]], options: OptimOptions, *, undecayed: Collection[str]
) -> list[dict[str, Any]]:
    """Groups `params`, `lr`, `lr_scale`, `weight_decay` and `by_muon` of the parameters that train, none empty.

    Their order depends on the names alone, for a saved state finds its parameters by their places.
    """
    named = list(parameters)
    above = layers_above(name for name, _ in named)
    members: dict[tuple[bool, bool, float], list[Tensor]] = {}
    for name, parameter in named:
        if parameter.requires_grad:
            # By name, not by shape: the models say which of theirs are gains, biases and tokens (no_weight_decay).
            is_spared = name in undecayed
            is_hidden = parameter.ndim == 2 and not is_spared and BLOCK.search(name) is not None
            by_muon = options.optimizer == "muon" and is_hidden
            scale = options.layer_decay ** above[name]
            members.setdefault((by_muon, is_spared, scale), []).append(parameter)
    groups = []
    for (by_muon, is_spared, scale), params in sorted(members.items(), key=lambda item: item[0]):
        lr_scale = scale * options.muon_lr / options.lr if by_muon and options.muon_lr else scale
        rates = {"lr": options.lr * lr_scale, "lr_scale": lr_scale}
        decay = 0.0 if is_spared else options.weight_decay
        groups.append({"params": params, **rates, "weight_decay": decay, "by_muon": by_muon})
    return groups


def layers_above(names: Iterable[str]) -> dict[str, int]:
    """How many layers lie between each parameter and the end of its tower.

    As BEiT's layer decay counts (arXiv 2106.08254): 0 for what follows the blocks and for the loss's own numbers, 1 for
    the last block, ..., one more than there are blocks for the embeddings. Of timm's own count it differs in the norm
    before the blocks, which timm files with the last block.
    """
    names = list(names)
    places = {name: (match[1], int(match[2])) for name in names if (match := BLOCK.search(name))}
    depths: dict[str, int] = {}
    for tower, block in places.values():
        depths[tower] = max(depths.get(tower, 0), block + 1)
    above = dict.fromkeys(names, 0)
    above |= {name: depths[tower] - block for name, (tower, block) in places.items()}
    return above | {name: depths.get(match[1], 0) + 1 for name in names if (match := STEM.search(name))}
