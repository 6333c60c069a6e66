"""Print the parameters and multiply-adds of a backbone with a classifier, or of the model of a config.

    python tools/get_flops.py --arch tiny
    python tools/get_flops.py --model VMamba --arch v2_tiny_s1l8
    python tools/get_flops.py configs/mask_rcnn/msvmamba_t_1x.py

The published convention, the default, is that of the authors of VMamba and MSVMamba, for comparing with their figures;
--ours counts the multiply-adds that this code makes. mmmsv/analysis/flops.py says what exactly either counts.
"""

import argparse
import warnings

from mmengine.logging import MMLogger
from torch import nn

from mmmsv.analysis.flops import BACKBONES, SHAPES, build_classifier, build_from_config, count, parameters

PUBLISHED = """\
Published convention: 1 GMAC is 1e9 multiply-adds of layers, plus 1e9 operations of scans (9 L D N + L D each), norms
and interpolations."""
OURS = "Ours: 1 GMAC is 1e9 multiply-adds that this code makes, in layers and in scans."


def main() -> None:
    sizes = ", ".join(f"{height} {width} for {library}" for library, (height, width) in SHAPES.items())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", help="path of a config of mmpretrain, mmdet or mmseg")
    parser.add_argument("--arch", help="in the place of a config: an arch, with a classifier of 1000 classes on top")
    parser.add_argument("--model", default="MSVMamba", help=f"whose arch: {' or '.join(BACKBONES)} (%(default)s)")
    parser.add_argument("--shape", nargs=2, type=int, metavar=("H", "W"), help=f"of the image ({sizes})")
    parser.add_argument("--ours", action="store_true", help="count what this code computes")
    args = parser.parse_args()
    if (args.config is None) == (args.arch is None):
        parser.error("give a config, or an arch such as --arch tiny, one of them")
    try:
        if args.config is None:
            name = f"{args.model} {args.arch}"
            model, shape = build_classifier(args.model, args.arch), SHAPES["mmpretrain"]
        else:
            name = args.config
            model, shape = build_from_config(args.config)
        height, width = args.shape or shape
        report = table(model, (height, width), args.ours)
    except ValueError as error:
        parser.error(str(error))
    print(f"{name}, one image of {height} x {width} (H x W)\n\n{report}\n\n{OURS if args.ours else PUBLISHED}")


def table(model: nn.Module, shape: tuple[int, int], ours: bool) -> str:
    """Count a model and its ``backbone``, and lay the counts out in millions of parameters and 1e9 MACs."""
    body = model.get_submodule("backbone")
    whole, backbone = (count(part, shape, ours) for part in (model, body))
    rows = [
        ("parameters (M)", parameters(model) / 1e6, parameters(body) / 1e6),
        ("GMACs", whole.total / 1e9, backbone.total / 1e9),
        ("  convolutions and linear layers", whole.layers / 1e9, backbone.layers / 1e9),
        ("  scans", whole.scan / 1e9, backbone.scan / 1e9),
        ("  norms and interpolations", whole.elementwise / 1e9, backbone.elementwise / 1e9),
    ]
    lines = [f"{'':34}{'total':>10}{'backbone':>10}{'rest':>10}"]
    lines += [f"{title:34}{total:10.3f}{part:10.3f}{total - part:10.3f}" for title, total, part in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    # What building a model logs, and warns of, is of no interest.
    MMLogger.get_instance("get_flops", log_level="ERROR")
    warnings.filterwarnings("ignore", module="mm")
    main()
