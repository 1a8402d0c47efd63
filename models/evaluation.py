"""The evaluation of a network on whole tracks: validation, and test."""

from __future__ import annotations

import logging
from collections import defaultdict
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from maest.helpers.checkpoints import diverged
from maest.helpers.errors import InputError
from maest.helpers.metrics import MONITOR, Evaluation, evaluate
from maest.helpers.patches import seconds
from maest.models.maest import Maest
from maest.models.patchout import on_device

log = logging.getLogger(__name__)

_LOSSES = {
    "multi-label": F.binary_cross_entropy_with_logits,
    "single-label": F.cross_entropy,  # with distributions over the classes as targets
    "regression": F.mse_loss,
}


class TrackEvaluation:
    """What a Lightning module needs to validate and test a network on whole tracks.

    A track's logits and activations are the means of its patches', weighted by their seconds. The
    tracks of an epoch, of all processes, are scored together; loss and figures are logged.

    To be named before ``LightningModule`` among the bases of a class.

    Args:
        net: the network.
        patches_per_pass: how many patches go through it at once.

    Attributes:
        also_evaluated: networks that are evaluated beside ``net``, by the name that their figures
            get.
        evaluation: the figures of the last validation or test; None before.
        other_evaluations: those of ``also_evaluated``, by name.
        targets, outputs: targets, and activations of ``net``, of all tracks of that validation or
            test, float32 [N, C]; None before.
        skipped: files that were passed over, and why (`datamodule.on_error=skip`).
    """

    def __init__(self, net: Maest, patches_per_pass: int = 32) -> None:
        super().__init__()
        self.net = net
        self.patches_per_pass = patches_per_pass
        self.also_evaluated: dict[str, Maest] = {}
        self.evaluation: Evaluation | None = None
        self.other_evaluations: dict[str, Evaluation] = {}
        self.targets: np.ndarray | None = None
        self.outputs: np.ndarray | None = None
        self.skipped: dict[str, str] = {}
        # Of the validation or test that is going on, batch by batch.
        self._keys: list[str] = []
        self._values: dict[str, list[Tensor]] = defaultdict(list)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        self._evaluation_end("val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate(batch)

    def on_test_epoch_end(self) -> None:
        self._evaluation_end("test")

    def run_patches(
        self, groups: list[tuple[Tensor, Tensor]], net: Maest | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run the patches of a batch of whole tracks through the network.

        Args:
            groups: of a ``TrackBatch``.
            net: another network than the module's own.

        Returns:
            ``(logits [n, C] float32, track [n], seconds [n] float32)`` over all patches.
        """
        net = net or self.net
        logits, tracks, durations = [], [], []
        for mel, track in groups:
            for piece in mel.split(self.patches_per_pass):
                logits.append(net(self._network_input(piece))[0].float())
            tracks.append(track)
            durations.append(logits[-1].new_full(track.shape, seconds(mel.shape[1])))
        return torch.cat(logits), torch.cat(tracks), torch.cat(durations)

    def track_means(self, batch: Any, net: Maest | None = None) -> tuple[Tensor, Tensor]:
        """Each track's mean logits and mean activations, weighted by seconds.

        Args:
            batch: a ``TrackBatch`` of N tracks, at least one.
            net: another network than the module's own.

        Returns:
            ``(logits, activations)``, both float32 [N, C].
        """
        logits, track, durations = self.run_patches(batch.groups, net)
        weights = durations[:, None]
        total = logits.new_zeros(len(batch), 1).index_add_(0, track, weights)

        def mean(values: Tensor) -> Tensor:
            summed = values.new_zeros(len(batch), values.shape[1])
            return summed.index_add_(0, track, values * weights) / total

        return mean(logits), mean((net or self.net).activations(logits))

    # ------------------------------------------------------------------ of training, too

    @property
    def _processes(self) -> int:
        """How many processes train or evaluate together."""
        together = torch.distributed.is_available() and torch.distributed.is_initialized()
        return torch.distributed.get_world_size() if together else 1

    def _note_skipped(self, errors: dict[str, str]) -> None:
        for key in errors.keys() - self.skipped.keys():
            log.warning("skipped: %s", errors[key])
        self.skipped |= errors

    def _network_input(self, mel: Tensor) -> Tensor:
        """[B, T, F] as on disk → normalised float32 [B, F, T]."""
        return self.net.normalise(mel.float()).transpose(1, 2)

    def _loss(
        self,
        logits: Tensor | tuple[Tensor, Tensor],
        targets: Tensor,
        dist_targets: Tensor | None = None,
    ) -> Tensor:
        """Mean loss of logits [N, C]; of a pair of them, the mean of the two heads' losses.

        ``targets`` [N, C] may be mixtures; ``dist_targets`` are those of the second head, if it has
        its own.
        """
        if isinstance(logits, tuple):
            cls, dist = logits
            other = targets if dist_targets is None else dist_targets
            return (self._loss(cls, targets) + self._loss(dist, other)) / 2
        logits = logits.float()
        if self.net.target_std is not None:  # values of any scale count alike
            deviation = on_device(torch.tensor(self.net.target_std), logits.device)
            logits, targets = logits / deviation, targets / deviation
        return _LOSSES[self.net.task](logits, targets)

    # ------------------------------------------------------------------ batches, and their end

    def _evaluate(self, batch: Any) -> None:
        self._note_skipped(batch.errors)
        if not len(batch):
            return
        self._keys += batch.keys
        self._values["targets"].append(batch.targets.cpu())
        for name, net in {"": self.net, **self.also_evaluated}.items():
            logits, activations = self.track_means(batch, net)
            self._values[f"logits {name}"].append(logits.cpu())
            self._values[f"activations {name}"].append(activations.cpu())

    def _evaluation_end(self, prefix: str) -> None:
        keys, values = self._keys, {n: torch.cat(parts) for n, parts in self._values.items()}
        self._keys, self._values = [], defaultdict(list)
        keys, values = self._of_all_processes(keys, values)
        if not keys:
            reasons = "; ".join(list(self.skipped.values())[:3])
            raise InputError(
                f"not one of the tracks to evaluate on could be read ({reasons})",
                kind="empty",
                hint="`python ex_maest.py check_data` with the same settings lists what is wrong.",
                setting=f"datamodule.groundtruth_{prefix}",
            )
        if not torch.isfinite(values["activations "]).all():
            if prefix == "val":
                raise diverged("the outputs became", self.current_epoch, self.global_step)
            raise InputError(
                "the network's outputs are NaN or infinite",
                kind="corrupt",
                hint="Its weights are damaged, or their training has diverged: take others.",
                setting="maest.checkpoint",
            )
        shown = (MONITOR[self.net.task], "roc_auc", "macro_f1")
        self.targets = values["targets"].numpy()
        self.outputs = values["activations "].numpy()
        for name in ("", *self.also_evaluated):
            own = f"{prefix}_{name}" if name else prefix
            loss = self._loss(values[f"logits {name}"], values["targets"])
            outputs = values[f"activations {name}"].numpy()
            evaluation = evaluate(self.net.task, self.targets, outputs)
            self.log(f"{own}_loss", loss)
            for figure, value in evaluation.figures.items():
                self.log(f"{own}_{figure}", value, prog_bar=figure in shown)
            if name:
                self.other_evaluations[name] = evaluation
            else:
                self.evaluation = evaluation

    def _of_all_processes(
        self, keys: list[str], values: dict[str, Tensor]
    ) -> tuple[list[str], dict[str, Tensor]]:
        """Put the tracks of all processes together, each once, in the order of the ground truth.

        Process r of n has tracks r, r + n, r + 2n, …; some have one of another's too, so that all
        have as many batches. What each has passed over is known to all from here on.
        """
        if self._processes == 1:
            return keys, values
        parts: list[Any] = [None] * self._processes
        torch.distributed.all_gather_object(parts, (keys, values, self.skipped))
        for _, _, skipped in parts:
            self._note_skipped(skipped)
        places: dict[str, tuple[int, int]] = {}
        for row in range(max(len(own) for own, _, _ in parts)):
            for rank, (own, _, _) in enumerate(parts):
                if row < len(own):
                    places.setdefault(own[row], (rank, row))
        names = next((names for _, names, _ in parts if names), {})
        return list(places), {
            name: torch.stack([parts[rank][1][name][row] for rank, row in places.values()])
            for name in names
        }
