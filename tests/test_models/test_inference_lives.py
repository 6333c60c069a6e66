"""A model whose blocks are computed in one call stays the same as one that calls its layers, whatever happens to both.

``MMMSV_FUZZ_EXAMPLES`` sets how many lives are led; they are the same in each run.
"""

import contextlib
import copy
import os
import pickle

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mmmsv.kernels.backends.cpu import library

from ..test_kernels.block_inputs import on_any_processor
from ..test_kernels.fused_inputs import CPU
from ..test_kernels.scan_inputs import assert_near
from .one_call import CONTAINERS, EVERY, assert_same, layer_by_layer, model_of, set_weight

SEEDS, PLACES = st.integers(0, 2**16), st.integers(0, 2**16)
MODES = [torch.no_grad, torch.inference_mode, torch.enable_grad]
EDITS = {
    "by data": lambda weight, new: weight.data.copy_(new),
    "in place": lambda weight, new: weight.copy_(new),
    "by numpy": lambda weight, new: weight.detach().numpy().__setitem__(..., new.numpy()),
    "another memory": lambda weight, new: setattr(weight, "data", new.clone()),
}


class Calls:
    """A hook that counts its calls."""

    def __init__(self):
        self.count = 0

    def __call__(self, *_):
        self.count += 1


def drawn_like(weights, seed):
    """Draw other values for the weights of a dict."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(weight.dtype) / 3
        for name, weight in weights.items()
    }


class Life(RuleBasedStateMachine):
    """What happens to a model and to its twin, which never computes blocks in one call."""

    def __init__(self):
        super().__init__()
        self.patches = contextlib.ExitStack()
        self.patches.enter_context(on_any_processor())

    def teardown(self):
        self.patches.close()

    @initialize(name=st.sampled_from([*EVERY]), frozen_stages=st.sampled_from([-1, 0]))
    def begin(self, name, frozen_stages):
        self.model = model_of(name, frozen_stages=frozen_stages)
        self.twin, self.dtype = copy.deepcopy(self.model), torch.float32

    @property
    def both(self):
        return self.model, self.twin

    def image(self, seed):
        size = [(1, 3, 16, 16), (2, 3, 32, 40), (3, 3, 17, 23)][seed % 3]
        return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(self.dtype)

    def name_of(self, place):
        names = [name for name, _ in self.model.named_parameters()]
        return names[place % len(names)]

    def hooks(self, model):
        return [hook for module in model.modules() for hook in module._forward_hooks.values()]

    @invariant()
    def both_are_the_same(self):
        ours, theirs = (dict(model.named_parameters()) for model in self.both)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())
        self.infer(0, torch.no_grad)
        assert [hook.count for hook in self.hooks(self.model)] == [hook.count for hook in self.hooks(self.twin)]

    @rule(seed=SEEDS, mode=st.sampled_from(MODES))
    def infer(self, seed, mode):
        image = self.image(seed)
        with mode():
            ours = self.model(image)
            with layer_by_layer():
                theirs = self.twin(image)
        assert_same(ours, theirs)

    @rule(seed=SEEDS)
    def infer_with_other_weights(self, seed):
        image, weights = self.image(seed), drawn_like(dict(self.model.named_parameters()), seed)
        with torch.no_grad():
            ours = torch.func.functional_call(self.model, weights, image)
            with layer_by_layer():
                assert_same(ours, torch.func.functional_call(self.twin, weights, image))

    @precondition(lambda self: any(weight.requires_grad for weight in self.model.parameters()))
    @rule(seed=SEEDS)
    def train(self, seed):
        """Take a step; gradients are rounded otherwise where what comes before the first trained weight is one call."""
        self.step(self.model, seed)
        with layer_by_layer():
            self.step(self.twin, seed)
        for ours, theirs in zip(*(model.parameters() for model in self.both), strict=True):
            assert_near(ours, theirs, 1e-2)
        self.twin.load_state_dict(self.model.state_dict())

    def step(self, model, seed):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        sum(y.square().mean() for y in model(self.image(seed))).backward()
        optimizer.step()
        optimizer.zero_grad()

    @rule(training=st.booleans())
    def set_training(self, training):
        for model in self.both:
            model.train(training)

    @rule(part=st.sampled_from(["", "stem", "stages"]), trained=st.booleans())
    def freeze(self, part, trained):
        for model in self.both:
            model.get_submodule(part).requires_grad_(trained)

    @rule(seed=SEEDS)
    def load(self, seed):
        for model in self.both:
            model.load_state_dict(drawn_like(model.state_dict(), seed))

    @rule(dtype=st.sampled_from([torch.float64, torch.float32]))
    def cast(self, dtype):
        self.dtype = dtype
        for model in self.both:
            model.to(dtype)

    @rule(place=PLACES, seed=SEEDS, edit=st.sampled_from([*EDITS]))
    def edit(self, place, seed, edit):
        name = self.name_of(place)
        for model in self.both:
            weight = model.get_parameter(name)
            with torch.no_grad():
                EDITS[edit](weight, drawn_like({name: weight}, seed)[name])

    @rule(place=PLACES, seed=SEEDS, trained=st.booleans())
    def replace_a_parameter(self, place, seed, trained):
        name = self.name_of(place)
        for model in self.both:
            set_weight(model, name, drawn_like({name: model.get_parameter(name)}, seed)[name])
            model.get_parameter(name).requires_grad_(trained)

    @rule(place=PLACES, seed=SEEDS)
    def swap_a_layer(self, place, seed):
        path = self.name_of(place).rpartition(".")[0]
        layer = copy.deepcopy(self.model.get_submodule(path))
        layer.load_state_dict(drawn_like(layer.state_dict(), seed))
        parent, _, name = path.rpartition(".")
        for model in self.both:
            setattr(model.get_submodule(parent), name, copy.deepcopy(layer))

    @rule()
    def copy_deeply(self):
        self.model, self.twin = copy.deepcopy(self.both)

    @rule()
    def pickle(self):
        self.model, self.twin = pickle.loads(pickle.dumps(self.both))

    @rule()
    def share_memory(self):
        for model in self.both:
            model.share_memory()

    @rule(place=PLACES)
    def add_a_hook(self, place):
        for model in self.both:
            modules = [module for module in model.modules() if not isinstance(module, CONTAINERS)]
            modules[place % len(modules)].register_forward_hook(Calls())

    @precondition(lambda self: self.hooks(self.model))
    @rule()
    def remove_the_hooks(self):
        for model in self.both:
            for module in model.modules():
                module._forward_hooks.clear()


TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=int(os.environ.get("MMMSV_FUZZ_EXAMPLES", "15")),
    stateful_step_count=20,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],  # a life of 20 steps is short enough to be read, and takes minutes to be made shorter
    suppress_health_check=[HealthCheck.too_slow],
)
TestLife = pytest.mark.skipif(library.why_not(CPU) is not None, reason="there is no C++ library here")(TestLife)
