"""The golden tensors (tests/data/golden/README.md), and their key layout carried over to ours."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

GOLDEN = Path(__file__).parents[1] / "data" / "golden"

# Prefix by prefix, the longest first; the scans' stacked parameters are cut apart below.
_RENAMED = {
    "patch_embed.0.": "patch_embed.conv.",
    "patch_embed.2.": "patch_embed.norm.",
    "norm.": "norm1.",
    "norm2.": "norm2.",
    "op.in_proj.": "ms2d.in_proj.",
    "op.conv2d.": "ms2d.full_conv.",
    "op.conv2d_b1.": "ms2d.half_conv.",
    "op.out_norm.": "ms2d.out_norm.",
    "op.se.fc.0.": "ms2d.se.reduce.",
    "op.se.fc.2.": "ms2d.se.expand.",
    "op.out_proj.": "ms2d.out_proj.",
    "convFFN.linear1.": "ffn.fc1.",
    "convFFN.dwc.": "ffn.dwconv.",
    "convFFN.linear2.": "ffn.fc2.",
}
_STACKED = {
    "op.x_proj_weight": "x_proj.weight",
    "op.dt_projs_weight": "dt_weight",
    "op.dt_projs_bias": "dt_bias",
    "op.A_logs": "A_log",
    "op.Ds": "skip",
}


def load_golden(name: str) -> dict:
    """Load a file; ``meta`` becomes a dict."""
    golden = torch.load(GOLDEN / name, weights_only=True)
    return {**golden, "meta": json.loads(golden["meta"])}


def arch_of(meta: Mapping) -> dict:
    """Translate a file's meta into an arch dict of ours."""
    full = ("row", "col", "row_rev", "col_rev")[: meta["full_routes"]]
    half = {1: ("col_rev",), 2: ("row_rev", "col_rev"), 3: ("row_rev", "col", "col_rev")}[meta["half_routes"]]
    ffn = {} if meta["ffn"] == "none" else {"ffn_ratio": meta["ffn_ratio"]}
    return {
        "embed_dims": meta["embed_dims"],
        "depths": meta["depths"],
        "state_size": meta["d_state"],
        "ssm_ratio": meta["ssm_ratio"],
        "full_routes": full,
        "half_routes": half,
        "se": meta["se"],
        "gate": meta["gated"],
        "ffn": meta["ffn"],
        **ffn,
    }


def backbone_weights(weights: Mapping[str, Tensor], sets: int) -> dict[str, Tensor]:
    """Rename backbone weights, or gradients; ``sets`` is the number of parameter sets of each MS2D, half first."""
    renamed = {}
    for key, value in weights.items():
        if key.startswith("layers."):
            _, stage, kind, *rest = key.split(".")
            if kind == "downsample":
                renamed[f"stages.{int(stage) + 1}.downsample.{'.'.join(rest)}"] = value
                continue
            block, local = f"stages.{stage}.blocks.{rest[0]}.", ".".join(rest[1:])
        elif key.startswith("outnorm"):
            renamed[f"out_norms.{key.removeprefix('outnorm')}"] = value
            continue
        elif key.startswith("classifier."):
            continue
        else:
            block, local = "", key
        if local in _STACKED:
            # Ours keep the set in an axis of its own, and the projections of all sets in one matrix.
            parts = value.unflatten(0, (sets, -1)) if local in ("op.A_logs", "op.Ds") else value
            for scan, part in (("half_scan", parts[:1]), ("full_scan", parts[1:])):
                name = _STACKED[local]
                renamed[f"{block}ms2d.{scan}.{name}"] = part.flatten(0, 1) if name == "x_proj.weight" else part
        else:
            prefix = next(prefix for prefix in _RENAMED if local.startswith(prefix))
            squeezed = value[:, :, 0, 0] if "linear" in prefix and value.dim() == 4 else value
            renamed[block + local.replace(prefix, _RENAMED[prefix], 1)] = squeezed
    return renamed
