"""The golden tensors (tests/data/golden/README.md) and the archs that they are of."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
FILES = sorted(path.name for path in GOLDEN.glob("*.pt"))
WITH_GRADIENTS = ("arxiv.pt", "arxiv_state4_plain.pt", "neurips.pt", "vmamba_arxiv.pt", "vmamba_s1.pt")

_FULL = ("row", "col", "row_rev", "col_rev")
_HALF = {0: (), 1: ("col_rev",), 2: ("row_rev", "col_rev"), 3: ("row_rev", "col", "col_rev")}
# What the meta of a file says by the name of the family.
_FAMILY = {
    "arxiv": {},
    "neurips": {"stem": "conv", "downsample": "conv", "fusion": "norm_last", "ffn_norm": "post"},
    "vmamba_v2": {"stem": "conv", "downsample": "conv", "conv_bias": False},
}


def load_golden(name: str) -> dict:
    """Load a file; ``meta`` becomes a dict."""
    golden = torch.load(GOLDEN / name, weights_only=True)
    return {**golden, "meta": json.loads(golden["meta"])}


def arch_of(meta: Mapping) -> dict:
    """Translate a file's meta into an arch dict of ours."""
    ffn = {} if meta["ffn"] == "none" else {"ffn_ratio": meta["ffn_ratio"]}
    return {
        "embed_dims": meta["embed_dims"],
        "depths": meta["depths"],
        "state_size": meta["d_state"],
        "ssm_ratio": meta["ssm_ratio"],
        "full_routes": _FULL[: meta["full_routes"]],
        "half_routes": _HALF[meta["half_routes"]],
        "se": meta["se"],
        "gate": meta["gated"],
        "ffn": meta["ffn"],
        **ffn,
        **_FAMILY[meta["family"]],
    }
