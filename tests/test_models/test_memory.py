"""What a block keeps for its backward pass."""

import pytest
import torch

from mmmsv.models import MSVMamba

DIM = 32
# By arch: how many maps as large as the block's input. Four are so: the input, the sum behind the scan, and what comes
# out of both norms. Those within the scan (x, its convolution, what each resolution's scan gave, the gate) are twice as
# wide in tiny; what goes into the FFN's convolution is twice as wide there, and four times in v3; the rest is a map of
# half the size, and small.
KEPT = {"tiny": 16.5, "v3_tiny": 12, "v3_base": 13}


def bytes_kept(model, image):
    """Count the memory behind all tensors that autograd keeps, each once, without parameters."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage  # the storage itself, so that its address is not given to another
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        maps = model(image)
    return sum(storage.nbytes() for storage in kept.values()), maps


def backbone(arch, depth, **options):
    settings = {"base": arch, "embed_dims": (DIM,), "depths": (depth,)}
    return MSVMamba(settings, drop_path_rate=0.0, **options)


@pytest.mark.parametrize("arch", KEPT)
def test_a_block_keeps_few_maps(arch):
    image = torch.randn(2, 3, 224, 224)
    one, two = (bytes_kept(backbone(arch, depth), image)[0] for depth in (1, 2))
    assert (two - one) / (2 * 56 * 56 * DIM * 4) < KEPT[arch]


def test_with_cp_keeps_the_input_of_a_block_alone():
    image = torch.randn(2, 3, 224, 224)
    one, two = (bytes_kept(backbone("tiny", depth, with_cp=True), image)[0] for depth in (1, 2))
    assert (two - one) / (2 * 56 * 56 * DIM * 4) < 1.1
