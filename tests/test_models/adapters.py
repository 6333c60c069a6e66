"""What others put in the place of a layer."""

from torch import nn


class LowRank(nn.Module):
    """A layer and a low-rank sum to it, as LoRA puts it in the layer's place."""

    def __init__(self, layer, rank=2):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Linear(layer.in_features, rank, bias=False)
        self.up = nn.Linear(rank, layer.out_features, bias=False)

    def forward(self, x):
        return self.layer(x) + self.up(self.down(x))
