"""What is trained, by which optimiser, and how fast: another one than AdamW would be added here."""

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
    """Which layer a parameter is of, for the layer-wise decay of the learning rate.

    0: patch embedding, tokens and positions; i + 1: block i; depth + 1: the last norm and the
    heads. Level l has the rate lr · layer_decay^(depth + 1 - l): what is near the input changes
    least. As in BEiT, H. Bao et al., ICLR 2022 (arXiv 2106.08254), after ELECTRA, K. Clark et al.,
    ICLR 2020 (arXiv 2003.10555).
    """
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return depth + 1 if name.startswith(("norm.", "head.", "head_dist.")) else 0


class Optimiser:
    """AdamW by a recipe (section `module` of the settings): groups, rates, and what is frozen.

    Attributes:
        frozen: modules that are not trained, and are to stay in eval mode: no dropout. Their
            parameters no longer ask for gradients.

    Raises:
        InputError: for more frozen blocks than there are, or swa_lr without swa_start.
    """

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
        self.frozen: list[torch.nn.Module] = []
        if net.distilled_type == "mean":  # which leaves the second head out
            net.head_dist.requires_grad_(False)
        if blocks:
            self.frozen = [net.patch_embed, net.pos_drop, *net.blocks[:blocks]]
            for name, parameter in net.named_parameters():
                if layer_level(name, net.depth) <= blocks:
                    parameter.requires_grad_(False)

    def groups(self) -> list[dict[str, Any]]:
        """What is trained: one group, or one a level where the learning rate decays over layers."""
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
        """The optimiser, and its schedule, whose steps ``epochs`` counts in epochs."""
        recipe = self.recipe
        optimiser = torch.optim.AdamW(
            self.groups(), weight_decay=recipe.weight_decay, betas=recipe.betas, fused=fused
        )
        return optimiser, LambdaLR(optimiser, lambda step: self.factor(epochs(step)))

    def factor(self, epoch: float) -> float:
        """The learning rate over its base, after so many epochs."""
        recipe, start, rate = self.recipe, self.recipe.swa_start, self.recipe.swa_lr
        if start is not None and rate is not None and epoch >= start:
            return float(rate / recipe.lr)
        return float(recipe.factor(epoch))

    def overrule(self, schedule: LambdaLR) -> None:
        """Give a continued training this recipe: of its checkpoint, moments and position count."""
        for i, group in enumerate(self.groups()):
            schedule.base_lrs[i] = group["lr"]
            schedule.optimizer.param_groups[i] |= {
                "initial_lr": group["lr"],
                "lr": group["lr"] * schedule.lr_lambdas[i](schedule.last_epoch),
                "weight_decay": self.recipe.weight_decay,
                "betas": tuple(self.recipe.betas),
            }
