"""Draw how much of each token is left in the state when a scan comes to another one (Figures 2 and 4 of MSVMamba).

    python tools/decay_map.py data/coco_mini/val2017 --model tiny --checkpoint authors://msvmamba_t_300e
    python tools/decay_map.py photo.jpg --model VMamba:v2_tiny_s1l8 tiny --size 1024 --stage 2 --block 0

decay_axes: from each token to the one of a pixel, along rows and along columns, the larger ratio of the two, and where
it is above 10. decay_routes: along each route, to the token that it visits last. Both are averaged over the
photographs, which are cut to squares. Each is a PNG, an SVG, and the arrays.
"""

import argparse
from pathlib import Path

from mmmsv.analysis.command_line import add_block_arguments, add_query_argument, figure_parser, load_networks, run
from mmmsv.analysis.decay import decay_maps, join_axes
from mmmsv.analysis.figures.decay_map import axes_arrays, draw_axes, draw_routes, route_arrays
from mmmsv.analysis.figures.saving import numbered, save
from mmmsv.analysis.photographs import describe, read_photographs, with_progress


def main() -> None:
    parser = figure_parser(__doc__, "decay_map")
    add_block_arguments(parser, stage=-1, block=-1)
    add_query_argument(parser)
    run(parser, make)


def make(args: argparse.Namespace) -> list[Path]:
    """Compute, draw and save both figures; return their paths."""
    networks = load_networks(args)
    photographs = read_photographs(args.photographs, args.size, "square")
    queries = {photograph.locate(args.query) for photograph in photographs}
    if len(queries) > 1:
        raise ValueError("--query is another pixel in each photograph, since their sizes differ; leave it out")
    (query,) = queries
    axes, routes = {}, {}
    for network in networks:
        title = network.describe_block(args.stage, args.block)
        axes[title], routes[title] = (
            decay_maps(network, with_progress(photographs, network.title), args.stage, args.block, towards)
            for towards in (query, None)
        )
    what = f"{describe(photographs)}, {args.size} x {args.size}"
    position = ((query[0] + 0.5) / args.size, (query[1] + 0.5) / args.size)
    joined = {title: join_axes(maps) for title, maps in axes.items()}
    facts = {
        "networks": [network.title for network in networks],
        "photographs": [photograph.name for photograph in photographs],
        "size": args.size,
        "stage": args.stage,
        "block": args.block,
    }
    arrays = (numbered(map(axes_arrays, joined.values())), numbered(map(route_arrays, routes.values())))
    return [
        save(draw_axes(joined, position, what), {**facts, "query": query, **arrays[0]}, args.out, "decay_axes"),
        save(draw_routes(routes, what), {**facts, **arrays[1]}, args.out, "decay_routes"),
    ]


if __name__ == "__main__":
    main()
