"""The optimiser: parameters to train, their learning rates and the schedule."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from maest.helpers.errors import InputError
from maest.models.maest import Maest


def layer_level(name: str, depth: int) -> int:
    """Find a parameter's level, for the layer-wise decay of the learning rate.

    0: patch embedding, tokens and positions; i + 1: block i; depth + 1: the last norm and the
    heads. Level l has the rate lr · layer_decay^(depth + 1 - l): layers near the input change
    least. As in BEiT, H. Bao et al., ICLR 2022 (arXiv 2106.08254), after ELECTRA, K. Clark et al.,
    ICLR 2020 (arXiv 2003.10555).
    """
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return depth + 1 if name.startswith(("norm.", "head.", "head_dist.")) else 0


class Optimiser:
    """AdamW by a recipe (section `module`), with frozen blocks. InputError: settings conflict."""

    def __init__(self, net: Maest, recipe: Any) -> None:
        if recipe.freeze_blocks > net.depth:
            message = f"{recipe.freeze_blocks} blocks cannot be frozen, of {net.depth}"
            hint = f"Give 0 (nothing) to {net.depth}."
            raise InputError(message, setting="module.freeze_blocks", hint=hint)
        if recipe.swa_lr is not None and recipe.swa_start is None:
            message = "there is no average that this rate is for"
            hint = "Set module.swa_start to the number of epochs before it, or leave it out."
            raise InputError(message, kind="conflict", setting="module.swa_lr", hint=hint)
        self.net, self.recipe, blocks = net, recipe, recipe.freeze_blocks
        # Frozen modules stay in eval mode (no dropout); their parameters have no gradients.
        self.frozen: list[torch.nn.Module] = []
        if net.distilled_type == "mean":  # which leaves the second head out
            net.head_dist.requires_grad_(False)
        if blocks:
            self.frozen = [net.patch_embed, net.pos_drop, *net.blocks[:blocks]]
            for name, parameter in net.named_parameters():
                if layer_level(name, net.depth) <= blocks:
                    parameter.requires_grad_(False)

    def groups(self) -> list[dict[str, Any]]:
        """Group the parameters to train: one group, or one per level with ``layer_decay``."""
        lr, decay, depth = self.recipe.lr, self.recipe.layer_decay, self.net.depth
        trained = {n: p for n, p in self.net.named_parameters() if p.requires_grad}
        if decay == 1:
            return [{"params": list(trained.values()), "lr": lr}]
        levels: dict[int, list[Tensor]] = defaultdict(list)
        for name, parameter in trained.items():
            levels[layer_level(name, depth)].append(parameter)
        return [
            {"params": own, "lr": lr * decay ** (depth + 1 - level), "name": f"level {level}"}
            for level, own in sorted(levels.items())
        ]

    def build(
        self, epochs: Callable[[int], float], fused: bool | None = None
    ) -> tuple[torch.optim.Optimizer, LambdaLR]:
        """Build the optimiser and its schedule; ``epochs`` converts its steps to epochs."""
        recipe = self.recipe
        optimiser = torch.optim.AdamW(
            self.groups(), weight_decay=recipe.weight_decay, betas=recipe.betas, fused=fused
        )
        return optimiser, LambdaLR(optimiser, lambda step: self.factor(epochs(step)))

    def factor(self, epoch: float) -> float:
        """The learning rate over its base after ``epoch`` epochs."""
        recipe, start, rate = self.recipe, self.recipe.swa_start, self.recipe.swa_lr
        if start is not None and rate is not None and epoch >= start:
            return float(rate / recipe.lr)
        return float(recipe.factor(epoch))

    def overrule(self, schedule: LambdaLR) -> None:
        """Give a resumed training this recipe; the checkpoint's moments and position stay."""
        for i, group in enumerate(self.groups()):
            schedule.base_lrs[i] = group["lr"]
            schedule.optimizer.param_groups[i] |= {
                "initial_lr": group["lr"],
                "lr": group["lr"] * schedule.lr_lambdas[i](schedule.last_epoch),
                "weight_decay": self.recipe.weight_decay,
                "betas": tuple(self.recipe.betas),
            }
