"""Whole files that are of another arch than the model."""

import torch

from mmmsv.checkpoints.translation import to_authors
from mmmsv.models import MSVMamba
from tests.test_models.golden import arch_of, load_golden

from .refusals import assert_refused


class TestRightFileForAnotherArch:
    """The message names the arch that the file is of."""

    def test_other_size(self, authors):
        model = MSVMamba({**arch_of(authors.meta), "embed_dims": (16, 32, 48, 64)})
        path = authors.save({"model": authors.weights})
        arch = r"arch=dict\(embed_dims=\(8, 16, 32, 48\), .*"
        assert_refused(model, path, f"The file is of mmmsv.MSVMamba, {arch}: give the model that type and")

    def test_published_name(self, authors):
        with torch.device("meta"):
            weights = {f"backbone.{name}": value for name, value in MSVMamba("nano").state_dict().items()}
        theirs = {
            name: torch.zeros(value.shape) for name, value in to_authors(weights, MSVMamba.archs["nano"], False).items()
        }
        assert_refused(
            authors.model(),
            authors.save({"state_dict": theirs}),
            "The file is of mmmsv.MSVMamba, arch='nano': give the",
        )

    def test_other_family(self, authors):
        golden = load_golden("arxiv.pt")
        path = authors.save({"model": golden["model"]})
        assert_refused(
            authors.model(),
            path,
            r"missing: patch_embed.5.weight.*unexpected.*The file is of mmmsv.MSVMamba, arch=dict",
        )

    def test_same_shapes_with_norms_elsewhere(self, authors):
        model = MSVMamba({**arch_of(authors.meta), "fusion": "norm_first"})
        path = authors.save({"model": authors.weights})
        assert_refused(
            model, path, "fusion='norm_last' and ffn_norm='post', as its stem tells; stage 0 of the model has"
        )

    def test_other_channels(self, authors):
        path = authors.save({"model": authors.weights})
        assert_refused(authors.model(in_channels=4), path, r"patch_embed.0.weight.*or in_channels is another")

    def test_our_own_names(self, authors):
        path = authors.save({"state_dict": authors.model().state_dict()})
        assert_refused(
            authors.model(),
            path,
            r"is a checkpoint of MMEngine's already: load it with init_cfg=dict\(type='Pretrained'.*prefix='backbone.'",
        )
