"""Small networks of transformers and mambapy: what they compute, and their gradients; with stand-ins or as they are.

    python -m tests.test_kernels.other_packages FILE [--stand-in]

It is a program, since those packages look for mamba-ssm once, when they are imported.
"""

import argparse
import importlib.util
import sys

import torch
from torch import Tensor, nn

SIZES = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2}
ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 2, "attn_layer_period": 2, "attn_layer_offset": 1}
OPTIONS = {
    "Mamba": {"state_size": 4},
    "FalconMamba": {"state_size": 4},
    "Jamba": {"mamba_d_state": 4, "intermediate_size": 32, "num_experts": 2, **ATTENTION},
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("--stand-in", action="store_true")
    args = parser.parse_args()
    if args.stand_in:
        import mmmsv.kernels

        mmmsv.kernels.stand_in()
    results = {}
    if importlib.util.find_spec("transformers"):
        sys.modules["kernels"] = None  # the link in the root of the checkout, which transformers takes for a package
        for name, options in OPTIONS.items():
            results[name] = of_language_model(name, options)
    if importlib.util.find_spec("mambapy"):
        results["mambapy"] = of_mambapy(use_cuda=args.stand_in)
    torch.save(results, args.file)


def of_language_model(name: str, options: dict[str, object]) -> dict[str, list[Tensor]]:
    import transformers
    from transformers.models.falcon_mamba import modeling_falcon_mamba

    # What mamba-ssm computes there, and transformers elsewhere, are not the same.
    modeling_falcon_mamba.mamba_inner_fn = lambda *args, **kwargs: None
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZES, **options)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    ids = torch.randint(3, 50, (2, 19))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    results = {}
    for training in (False, True):
        model.train(training)
        found = model(ids, labels=ids, use_cache=False)
        results["training" if training else "inference"] = [found.logits, *gradients(found.loss, model)]
    model.eval()
    new = model.generate(ids, attention_mask=mask, max_new_tokens=5, do_sample=False, return_dict_in_generate=True)
    results["generation"] = [new.sequences]
    return {what: [each.detach() for each in tensors] for what, tensors in results.items()}


def of_mambapy(use_cuda: bool) -> dict[str, list[Tensor]]:
    from mambapy.mamba import Mamba, MambaConfig

    torch.manual_seed(0)
    model = Mamba(MambaConfig(d_model=16, n_layers=2, d_state=4, use_cuda=use_cuda))
    if model.config.use_cuda != use_cuda:
        raise RuntimeError("mambapy has not found mamba_ssm")
    y = model(torch.randn(2, 19, 16))
    return {"training": [y.detach(), *gradients(y.square().sum(), model)]}


def gradients(loss: Tensor, model: nn.Module) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return [each for each in found if each is not None]


if __name__ == "__main__":
    main()
