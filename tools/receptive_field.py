"""Draw which pixels the central token of the last map depends on: the effective receptive field (Figure 5 of VMamba).

    python tools/receptive_field.py photo.jpg --model tiny VMamba:v2_tiny_s1l8 resnet50 convnext_tiny swin_t deit_small
    python tools/receptive_field.py data/coco_mini/val2017 --size 512 --model tiny --checkpoint authors://msvmamba_t_300e

Networks are archs and configs, ResNets, ConvNeXts and Swins of torchvision, and deit_small of mmpretrain. One with a
checkpoint is shown with random weights, too. It prints the side of the square that holds 20, 50, 90 and 99 % of the
gradient, in pixels, and writes a PNG, an SVG, and the arrays.
"""

import argparse
from pathlib import Path

from mmmsv.analysis.command_line import figure_parser, load_networks, run
from mmmsv.analysis.figures.receptive_field import arrays, draw
from mmmsv.analysis.figures.saving import numbered, save
from mmmsv.analysis.photographs import describe, read_photographs, with_progress
from mmmsv.analysis.receptive_field import SHARES, receptive_field


def main() -> None:
    run(figure_parser(__doc__, "receptive_field", size=1024), make)


def make(args: argparse.Namespace) -> list[Path]:
    """Compute, print, draw and save the receptive fields; return the path of the figure."""
    networks = load_networks(args, before_training=True)
    photographs = read_photographs(args.photographs, args.size, "square")
    for network in networks:
        network.find_body()  # what has none is refused before minutes of work
    width = max(len(network.title) for network in networks)
    print("px".ljust(width), *(f"{100 * share:.0f} %".rjust(6) for share in SHARES))
    fields = {}
    for network in networks:
        field = fields[network.title] = receptive_field(network, with_progress(photographs, network.title))
        print(network.title.ljust(width), *(f"{side:6}" for side in field.sides.values()), flush=True)
    what = f"{describe(photographs)}, {args.size} x {args.size}"
    facts = {
        "networks": list(fields),
        "photographs": [photograph.name for photograph in photographs],
        "size": args.size,
    }
    return [save(draw(fields, what), {**facts, **numbered(map(arrays, fields.values()))}, args.out, "receptive_field")]


if __name__ == "__main__":
    main()
