"""Draw a scan as attention: the weight of every token for that of a pixel (Figure 6 of MSVMamba).

    python tools/attention_map.py photo.jpg --model tiny --checkpoint authors://msvmamba_t_300e --query 320 200
    python tools/attention_map.py photo.jpg --model VMamba:v2_tiny_s1l8 tiny --size 1024 --stage 2 --block 0

attention_map_PHOTOGRAPH, one for each photograph: the weights along each route and their sum, over the photograph; a
line for each model. A PNG, an SVG, and the arrays.
"""

import argparse
from pathlib import Path

from mmmsv.analysis.attention import attention_maps
from mmmsv.analysis.command_line import add_block_arguments, add_query_argument, figure_parser, load_networks, run
from mmmsv.analysis.figures.attention_map import arrays, draw
from mmmsv.analysis.figures.saving import numbered, save
from mmmsv.analysis.photographs import read_photographs, with_progress, with_queries


def main() -> None:
    parser = figure_parser(__doc__, "attention_map")
    add_block_arguments(parser, stage=1, block=-1)
    add_query_argument(parser)
    run(parser, make)


def make(args: argparse.Namespace) -> list[Path]:
    """Compute, draw and save a figure for each photograph; return their paths."""
    networks = load_networks(args)
    titles = [network.describe_block(args.stage, args.block) for network in networks]
    paths = []
    queries = with_queries(read_photographs(args.photographs, args.size, "whole"), args.query)
    for photograph, query in with_progress(queries, "attention_map"):
        maps = [attention_maps(network, photograph, args.stage, args.block, query) for network in networks]
        figure = draw(dict(zip(titles, maps, strict=True)), photograph, query)
        facts = {"networks": titles, "photograph": photograph.name, "size": photograph.shape, "query": query}
        paths.append(
            save(figure, {**facts, **numbered(map(arrays, maps))}, args.out, f"attention_map_{photograph.name}")
        )
    return paths


if __name__ == "__main__":
    main()
