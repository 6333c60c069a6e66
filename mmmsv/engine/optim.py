"""Lower the learning rate from layer to layer, from the heads to the stem."""

from collections import Counter
from functools import partial

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from mmmsv.registry import OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    r"""MMEngine's own constructor, with a learning rate that falls from the heads to the stem.

    .. math:: lr_i = lr \cdot rate^{\,layers - 1 - i}

    for a parameter of layer i. The layers are those of ``get_layer_depth`` of the model's backbone, or of the model
    itself; the last one, with necks and heads, keeps the whole learning rate. In a config of mmdet, mmseg or
    mmpretrain::

        optim_wrapper = dict(
            constructor='mmmsv.LayerDecayOptimWrapperConstructor',
            paramwise_cfg=dict(layer_decay_rate=0.75))

    Args:
        optim_wrapper_cfg: Config of the optimizer wrapper, its ``optimizer`` with a learning rate.
        paramwise_cfg: ``layer_decay_rate``, the rate, in (0, 1], and whatever
            :class:`~mmengine.optim.DefaultOptimWrapperConstructor` takes, with its meaning: an ``lr_mult`` and the
            decay are multiplied.

    Raises:
        ValueError: The rate is not there or out of range; the optimizer has no learning rate; or, when called, the
            model has no ``get_layer_depth``.
    """

    def _validate_cfg(self) -> None:
        super()._validate_cfg()
        name = type(self).__name__
        rate = self.paramwise_cfg.get("layer_decay_rate")
        if rate is None or type(rate) not in (int, float) or not 0 < rate <= 1:
            raise ValueError(
                f"{name}: layer_decay_rate is {rate!r}, expected a number above 0 and at most 1 in paramwise_cfg, such "
                "as 0.75"
            )
        if self.base_lr is None:
            raise ValueError(f"{name}: the optimizer has no learning rate; give lr= in its config")

    def add_params(
        self, params: list[dict], module: nn.Module, prefix: str = "", is_dcn_module: float | None = None
    ) -> None:
        """Append a group for each parameter of ``module``; of the whole model's, where no prefix says otherwise."""
        super().add_params(params, module, prefix, is_dcn_module)
        if not prefix:
            self._decay(params, module)

    def _decay(self, groups: list[dict], model: nn.Module) -> None:
        inside = hasattr(model, "backbone")
        owner = model.backbone if inside else model
        layer_of = getattr(owner, "get_layer_depth", None)
        if layer_of is None:
            raise ValueError(
                f"{type(self).__name__}: {type(owner).__name__} has no get_layer_depth, which returns the layer of a "
                "parameter; the backbones of mmmsv and many of mmpretrain have one"
            )
        if inside:
            layer_of = partial(layer_of, prefix="backbone.")
        names = {parameter: name for name, parameter in model.named_parameters()}
        scales, sizes = {}, Counter()
        for group in groups:
            (parameter,) = group["params"]
            layer, layers = layer_of(names[parameter])
            scales[layer] = self.paramwise_cfg["layer_decay_rate"] ** (layers - 1 - layer)
            group["lr"] = group.get("lr", self.base_lr) * scales[layer]
            sizes[layer] += 1
        for layer, scale in sorted(scales.items()):
            print_log(f"layer {layer}: {sizes[layer]} parameter tensors, learning rate x {scale:.3g}", "current")
