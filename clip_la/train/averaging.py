"""An exponential moving average of the weights, with a half-life in samples."""

import contextlib
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from clip_la.errors import UserError


class WeightAverage:
    """The mean of the weights after each step, those of `half_life` samples ago counting half.

    After step t it is sum_s d^(t-s) w_s / sum_s d^(t-s), with d = 2^(-samples_per_step / half_life): divided by the sum
    of the factors as Adam's moments are (arXiv 1412.6980, Sec. 3), so the initial weights have no part in it and early
    averages need no warm-up. In samples, not steps: a larger batch keeps the span, as with all lengths of a run.
    Kept in float32 beside the weights, which change in place: compiled and graphed towers know nothing of it.

    Args:
        half_life: in samples.
        samples_per_step: the batch of all processes together.
    """

    def __init__(self, half_life: float, samples_per_step: int) -> None:
        self._log_decay = -math.log(2) * samples_per_step / half_life
        self._num_updates = 0
        self._averages: dict[str, Tensor] = {}
        self._weights: dict[str, nn.Parameter] = {}

    def start(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        """Takes the parameters that train, where they are now; what was loaded goes on.

        Raises UserError where what was loaded is of other parameters.
        """
        self._weights = {name: p for name, p in parameters if p.requires_grad}
        if not self._averages:
            self._averages = {name: torch.zeros_like(p) for name, p in self._weights.items()}
        shapes = [{name: t.shape for name, t in own.items()} for own in (self._averages, self._weights)]
        if shapes[0] != shapes[1]:
            raise UserError("the checkpoint's averaged weights are not those of the weights that train")
        # In the order of the weights; a copy, as the loaded tensors belong to the checkpoint.
        self._averages = {name: self._averages[name].to(p, copy=True).detach() for name, p in self._weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Counts the weights as they are after a step."""
        self._num_updates += 1
        # (1 - d) / (1 - d^t): the share of the newest weights in the mean.
        share = math.expm1(self._log_decay) / math.expm1(self._log_decay * self._num_updates)
        torch._foreach_lerp_(list(self._averages.values()), list(self._weights.values()), share)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Puts the average in the place of the weights inside the block; afterwards they are what they were."""
        weights = [weight.detach() for weight in self._weights.values()]
        kept = [weight.clone() for weight in weights]
        torch._foreach_copy_(weights, list(self._averages.values()))
        try:
            yield
        finally:
            torch._foreach_copy_(weights, kept)

    def state_dict(self) -> dict[str, Any]:
        """The averages under the names of the weights, and the number of steps in them."""
        return {"state_dict": self._averages, "num_updates": self._num_updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What state_dict has returned; `start` comes afterwards."""
        self._averages, self._num_updates = dict(state["state_dict"]), state["num_updates"]
