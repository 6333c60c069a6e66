"""Make all figures of a network and a photograph, in one HTML page that opens without a network.

    python tools/report.py photo.jpg --model tiny --checkpoint authors://msvmamba_t_300e --query 320 200
    python tools/report.py photo.jpg --model tiny VMamba:v2_tiny_s1l8

report.html has the settings of the network, the photograph, the routes of its scans, decay, attention, receptive field,
features, class activation and scaling, each with the command that makes it alone. What cannot be made for a network is
said there.
"""

import argparse
from pathlib import Path

from mmmsv.analysis.command_line import add_query_argument, figure_parser, load_networks, run
from mmmsv.analysis.figures.saving import write
from mmmsv.analysis.photographs import find_photographs
from mmmsv.analysis.report import Subject, make_report


def main() -> None:
    parser = figure_parser(__doc__, "report")
    add_query_argument(parser)
    run(parser, make)


def make(args: argparse.Namespace) -> list[Path]:
    """Make and save the page; return its path."""
    paths = find_photographs(args.photographs)
    if len(paths) > 1:
        raise ValueError(f"a report is of one photograph, and {args.photographs} holds {len(paths)}: give one of them")
    query = None if args.query is None else tuple(args.query)
    subject = Subject(load_networks(args), args.model, args.checkpoint or [], paths[0], args.size, query)
    return [write(args.out / "report.html", make_report(subject).encode())]


if __name__ == "__main__":
    main()
