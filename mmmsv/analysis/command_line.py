"""The command-line arguments that the figures share."""

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from mmengine.logging import MMLogger

from .networks import Network, load_network

RANDOM = "none"


def figure_parser(
    doc: str | None,
    name: str,
    photographs: bool = True,
    size: int = 512,
    checkpoints: bool = True,
    models: Sequence[str] | None = None,
) -> argparse.ArgumentParser:
    """Make a parser with the arguments that figures of networks share.

    Args:
        doc: Docstring of the tool.
        name: Of the tool; its files go to ``work_dirs/NAME``.
        photographs: Whether it takes a photograph or a folder of them.
        size: Side of the photographs when none is given, a multiple of 32.
        checkpoints: Whether it takes weights.
        models: What ``--model`` is when it is not given; None, where it has to be.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if photographs:
        parser.add_argument("photographs", type=Path, help="path of a photograph, or of a folder of them")
        parser.add_argument("--size", type=int, default=size, help="side in pixels, a multiple of 32 (%(default)s)")
    model_help = "path of a config, or an arch such as tiny or VMamba:v2_tiny_s1l8; several: side by side"
    if models is not None:
        model_help += f" ({' '.join(models)})"
    parser.add_argument("--model", nargs="+", required=models is None, default=models, metavar="MODEL", help=model_help)
    if checkpoints:
        checkpoint_help = f"path, URL or authors://NAME for each model, or {RANDOM!r} for random weights (the default)"
        parser.add_argument("--checkpoint", nargs="+", metavar="CHECKPOINT", help=checkpoint_help)
    parser.add_argument("--out", type=Path, default=Path("work_dirs") / name, help="folder for the files (%(default)s)")
    return parser


def add_block_arguments(parser: argparse.ArgumentParser, stage: int, block: int) -> None:
    """Add ``--stage`` and ``--block``, with their defaults."""
    parser.add_argument("--stage", type=int, default=stage, help="from 0 on, or -1 for the last (%(default)s)")
    parser.add_argument("--block", type=int, default=block, help="within the stage, the same (%(default)s)")


def add_query_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--query``, a pixel of the photograph."""
    query_help = "pixel of the photograph's file, from its top left corner (the centre)"
    parser.add_argument("--query", type=int, nargs=2, metavar=("X", "Y"), help=query_help)


def load_networks(args: argparse.Namespace, before_training: bool = False) -> list[Network]:
    """Load the networks of ``--model`` and ``--checkpoint``.

    Args:
        args: Of the tool.
        before_training: Whether each network with a checkpoint comes with random weights first, where it has not yet.

    Raises:
        ValueError: A model or checkpoint cannot be loaded, there are not as many of the one as of the other, or two
            networks have one title.
    """
    checkpoints = args.checkpoint or [RANDOM] * len(args.model)
    if len(checkpoints) != len(args.model):
        raise ValueError(
            f"--model names {len(args.model)} and --checkpoint {len(checkpoints)}: give one checkpoint for each model, "
            f"or {RANDOM!r} for random weights"
        )
    networks, untrained = [], set()
    for model, checkpoint in zip(args.model, checkpoints, strict=True):
        if checkpoint == RANDOM or (before_training and model not in untrained):
            networks.append(load_network(model))
            untrained.add(model)
        if checkpoint != RANDOM:
            networks.append(load_network(model, checkpoint))
    titles = [network.title for network in networks]
    if twice := sorted({title for title in titles if titles.count(title) > 1}):
        raise ValueError(
            f"several networks would be called {'; '.join(twice)!r} in the figure: give each once, and their "
            "checkpoints different file names"
        )
    return networks


def run(parser: argparse.ArgumentParser, make: Callable[[argparse.Namespace], list[Path]]) -> None:
    """Parse the arguments, make the figures, and print where they are; a ValueError ends the program in its sentence.

    Args:
        parser: Of the tool.
        make: From its arguments; returns the paths of what it wrote.
    """
    args = parser.parse_args()
    # What building and loading a model logs, and warns of, is of no interest.
    MMLogger.get_instance("mmmsv", log_level="ERROR")
    warnings.filterwarnings("ignore", module="mm")
    try:
        if args.out.exists() and not args.out.is_dir():
            raise ValueError(f"--out {args.out} is a file, expected a folder")
        paths = make(args)
    except ValueError as error:
        sys.exit(f"{parser.prog}: {error}")
    print("\n".join(str(path) for path in paths))
