"""Whole files that are of another arch than the model: the message names the arch that the file is of."""

import pytest
import torch

from mmmsv.checkpoints.translation import to_authors
from mmmsv.models import MSVMamba
from tests.test_models.golden import arch_of, load_golden

from .refusals import assert_refused


def nano(_):
    with torch.device("meta"):
        ours = {f"backbone.{name}": value for name, value in MSVMamba("nano").state_dict().items()}
    theirs = to_authors(ours, MSVMamba.archs["nano"], False)
    return {name: torch.zeros(value.shape) for name, value in theirs.items()}


# What the model has that the file has not, the weights of the file, and the message.
OTHER = {
    "size": (
        {"embed_dims": (16, 32, 48, 64)},
        lambda authors: authors.weights,
        r"The file is of mmmsv.MSVMamba, arch=dict\(embed_dims=\(8, 16, 32, 48\), .*: give the model that type and",
    ),
    "published": ({}, nano, "The file is of mmmsv.MSVMamba, arch='nano': give the"),
    "family": (
        {},
        lambda _: load_golden("arxiv.pt")["model"],
        r"missing: patch_embed.5.weight.*unexpected.*The file is of mmmsv.MSVMamba, arch=dict",
    ),
    "norms elsewhere": (
        {"fusion": "norm_first"},
        lambda authors: authors.weights,
        "fusion='norm_last' and ffn_norm='post', as its stem shows; stage 0 of the model has",
    ),
    "our names, of a whole model": (
        {},
        lambda authors: {f"backbone.{name}": value for name, value in authors.model().state_dict().items()},
        r"load it with init_cfg=dict\(type='Pretrained', checkpoint=..., prefix='backbone.'\)$",
    ),
    "our names": (
        {},
        lambda authors: authors.model().state_dict(),
        r"has the names of this package already: load it with init_cfg=dict\(type='Pretrained', checkpoint=...\)$",
    ),
}


@pytest.mark.parametrize(("settings", "weights", "message"), OTHER.values(), ids=OTHER)
def test_other_arch(authors, settings, weights, message):
    model = MSVMamba({**arch_of(authors.meta), **settings})
    assert_refused(model, authors.save({"model": weights(authors)}), message)


def test_other_channels(authors):
    path = authors.save({"model": authors.weights})
    assert_refused(
        authors.model(in_channels=4), path, r"patch_embed.0.weight.*It was made with in_channels=3: give the"
    )
