"""Draw what leaves each stage of a backbone, and which tokens resemble that of a pixel.

    python tools/feature_map.py photo.jpg --model tiny --checkpoint authors://msvmamba_t_300e --query 320 200
    python tools/feature_map.py data/coco_mini/val2017 --model configs/mask_rcnn/msvmamba_n_coco_mini.py --size 1024

feature_map_PHOTOGRAPH, one for each photograph (with several models feature_map_0_PHOTOGRAPH for the first, and so
on): for each stage the three principal components of the tokens as colours, their norm, and the cosine of the angle to
the token of the pixel. A PNG, an SVG, and the arrays.
"""

import argparse
from pathlib import Path

from mmmsv.analysis.command_line import add_query_argument, figure_parser, load_networks, run
from mmmsv.analysis.features import feature_maps
from mmmsv.analysis.figures.feature_map import arrays, draw
from mmmsv.analysis.figures.saving import save
from mmmsv.analysis.photographs import read_photographs, with_progress, with_queries


def main() -> None:
    parser = figure_parser(__doc__, "feature_map")
    add_query_argument(parser)
    run(parser, make)


def make(args: argparse.Namespace) -> list[Path]:
    """Compute, draw and save a figure for each photograph and model; return their paths."""
    networks = load_networks(args)
    queries = with_queries(read_photographs(args.photographs, args.size, "whole"), args.query)
    paths = []
    for photograph, query in with_progress(queries, "feature_map"):
        for i, network in enumerate(networks):
            features = feature_maps(network, photograph, query)
            figure = draw(features, photograph, query, network.title)
            facts = {"network": network.title, "photograph": photograph.name, "size": photograph.shape, "query": query}
            name = photograph.name if len(networks) == 1 else f"{i}_{photograph.name}"
            paths.append(save(figure, {**facts, **arrays(features)}, args.out, f"feature_map_{name}"))
    return paths


if __name__ == "__main__":
    main()
