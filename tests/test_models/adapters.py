"""What others put in the place of a layer."""

import copy

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


class NamedLowRank(nn.Module):
    """The same as peft does it: low-rank sums by name, and only parameters of these that were there before."""

    def __init__(self, layer, names=("default",), rank=2):
        super().__init__()
        self.base_layer = layer
        self.lora_A = nn.ModuleDict({name: nn.Linear(layer.in_features, rank, bias=False) for name in names})
        self.lora_B = nn.ModuleDict({name: nn.Linear(rank, layer.out_features, bias=False) for name in names})

    def forward(self, x):
        return self.base_layer(x) + sum(
            up(down(x)) for down, up in zip(self.lora_A.values(), self.lora_B.values(), strict=True)
        )


class TrainedCopy(nn.Module):
    """A module and a copy of it that is trained in its place, as peft's ``modules_to_save`` has them."""

    def __init__(self, module):
        super().__init__()
        self.original_module = module
        self.modules_to_save = nn.ModuleDict({"default": copy.deepcopy(module)})

    def forward(self, x):
        return self.modules_to_save["default"](x)


def adapt(model, wrap, layers):
    """Freeze a model, and put adapters in the place of the layers whose names end so."""
    model.requires_grad_(False)
    for name, module in [*model.named_modules()]:
        if name.endswith(layers):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, wrap(module))
    return model
