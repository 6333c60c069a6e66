"""Draw where in a photograph a network sees the class, or the box, that it decides for (Grad-CAM).

    python tools/cam.py photo.jpg --model tiny --checkpoint authors://msvmamba_t_300e --size 224
    python tools/cam.py photo.jpg --model configs/mask_rcnn/msvmamba_t_1x.py --checkpoint epoch_12.pth --target 1

For a classifier it is the class with the largest logit, or --target; for a detector the best box, or the one that
--target counts from 0 on. Each photograph has a figure of its own: a PNG, an SVG, and the arrays.
"""

import argparse
from pathlib import Path

from mmmsv.analysis.cam import class_activation
from mmmsv.analysis.command_line import figure_parser, load_networks, run
from mmmsv.analysis.figures.cam import arrays, draw
from mmmsv.analysis.figures.saving import numbered, save
from mmmsv.analysis.photographs import check_names, read_photographs, with_progress


def main() -> None:
    parser = figure_parser(__doc__, "cam")
    target_help = "number of a class (the predicted one), or of a detector's box by its score, from 0 on (the best)"
    parser.add_argument("--target", type=int, help=target_help)
    stage_help = "whose map is taken, of those that the backbone returns, from 0 on, or -1 for the last (%(default)s)"
    parser.add_argument("--stage", type=int, default=-1, help=stage_help)
    run(parser, make)


def make(args: argparse.Namespace) -> list[Path]:
    """Compute, draw and save the class activation maps; return the path of a figure for each photograph."""
    networks = load_networks(args)
    photographs = read_photographs(args.photographs, args.size, "whole")
    check_names(photographs)
    paths = []
    for photograph in with_progress(photographs, "cam"):
        maps = {net.title: class_activation(net, photograph, args.target, args.stage) for net in networks}
        content = {"networks": list(maps), "size": photograph.shape, **numbered(map(arrays, maps.values()))}
        paths.append(save(draw(maps, photograph), content, args.out, f"cam_{photograph.name}"))
    return paths


if __name__ == "__main__":
    main()
