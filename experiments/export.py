"""The command export: write a model and its metadata for other programs."""

import json
import logging
from pathlib import Path
from typing import Any

from maest.config import Settings
from maest.experiments.model import check_head, in_section, network_arguments, require_checkpoint
from maest.helpers.blocks import chosen_blocks
from maest.models import get_maest
from maest.models.archs import clip_seconds, export_licence
from maest.models.saving import save_safetensors

log = logging.getLogger(__name__)


def export(run: Any, settings: Settings) -> dict[str, Any]:
    """Write ``maest.checkpoint`` as ``export.format`` into ``export.out_dir``."""
    options, written = settings.export, Path(settings.export.out_dir).expanduser()
    checkpoint = require_checkpoint(settings)
    arguments = network_arguments(settings, checkpoint)
    with in_section("maest"):
        net = get_maest(checkpoint=checkpoint, **arguments)
    check_head(checkpoint, net)
    with in_section("export"):
        licence = export_licence(options.licence, checkpoint.licence)
        trained_on = checkpoint.trained_on | ({"licence": licence} if licence else {})
        about = checkpoint.arch, trained_on
        notes: list[str] = []
        if options.format == "huggingface":
            from maest.models.huggingface import export_huggingface

            notes = export_huggingface(written, net, *about)
        elif options.format == "onnx":
            from maest.models.graph import export_onnx

            written /= "model.onnx"
            blocks: Any = options.blocks
            if blocks is None:
                setting = "inference.transformer_block"
                blocks = chosen_blocks(settings.inference.transformer_block, net.depth, setting)
            parents = json.dumps(trained_on.get("parents", []), ensure_ascii=False)
            metadata = {"arch": checkpoint.arch or "", "licence": licence or "", "parents": parents}
            export_onnx(written, net, blocks, options.with_frontend, metadata)
            limit = "max_samples" if options.with_frontend else "max_frames"
            most = f"up to {clip_seconds(net.input_t):g} s at a time ({limit} in its metadata)"
            notes = [f"It takes {most}: cut longer tracks into patches and average what they give."]
        else:
            written /= "model.safetensors"
            save_safetensors(written, net, *about)
            if net.patchout.kept_columns is not None or net.patchout.kept_rows is not None:
                notes = ["Patchout is a setting of a run: the file does not carry it."]
    for note in notes:
        log.warning(note)
    print(f"written: {written}")
    return {"written": str(written)}
