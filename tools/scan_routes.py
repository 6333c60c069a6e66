"""Draw the routes of scans over a small grid of tokens, as a still and as an animation.

    python tools/scan_routes.py --model VMamba:tiny tiny
    python tools/scan_routes.py --model configs/mask_rcnn/msvmamba_t_1x.py --stage 3 --grid 6 10

Each token has the colour of its place in the sequence; what a state runs through is on one ground. Needs no photograph
and no weights. scan_routes is a PNG, an SVG and the arrays; scan_routes.gif the animation, 900 pixels wide.
"""

import argparse
from pathlib import Path

from mmmsv.analysis.command_line import figure_parser, run
from mmmsv.analysis.figures.saving import numbered, save, write
from mmmsv.analysis.figures.scan_routes import animate, draw, route_arrays
from mmmsv.analysis.networks import load_network
from mmmsv.analysis.routes import grid_sequences


def main() -> None:
    parser = figure_parser(__doc__, "scan_routes", photographs=False, checkpoints=False)
    parser.add_argument("--stage", type=int, default=0, help="from 0 on, or -1 for the last (%(default)s)")
    grid_help = "tokens of the full-resolution map (8 6)"
    parser.add_argument("--grid", type=int, nargs=2, default=(8, 6), metavar=("ROWS", "COLUMNS"), help=grid_help)
    run(parser, make)


def make(args: argparse.Namespace) -> list[Path]:
    """Draw and save the still and the animation; return their paths."""
    scans = {network.name: network.scan(args.stage, 0) for network in map(load_network, args.model)}
    if len(scans) < len(args.model):
        raise ValueError(
            f"--model names {len(args.model)}, of which {len(scans)} have names of their own; give each once"
        )
    facts = {"networks": list(scans), "stage": args.stage, "grid": args.grid}
    arrays = numbered(route_arrays(grid_sequences(scan, *args.grid)) for scan in scans.values())
    still = save(draw(scans, *args.grid), {**facts, **arrays}, args.out, "scan_routes")
    return [still, write(args.out / "scan_routes.gif", animate(scans, *args.grid))]


if __name__ == "__main__":
    main()
