"""Convert a checkpoint of the authors of MSVMamba or VMamba into one of MMEngine's, or back.

What comes out loads like any checkpoint of mmpretrain, mmdet or mmseg: with --checkpoint, load_from, or
init_cfg=dict(type='Pretrained', checkpoint=DST, prefix='backbone.'). The arch is inferred from the weights.

A file that the authors released has the name of the config that it is of: authors://vmamba_t_1x. The same address in
the place of a checkpoint loads it without converting it first.
"""

import argparse

from mmmsv.checkpoints.conversion import from_authors_file, save_named_by_hash, to_authors_file
from mmmsv.checkpoints.releases import Release


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("src", metavar="SRC", help="path or URL of the checkpoint, or authors://NAME")
    parser.add_argument(
        "dst",
        metavar="DST",
        help="NAME.pth, for NAME-0123abcd.pth with digits of its SHA-256; or a folder, for a file named after SRC",
    )
    parser.add_argument("--to-authors", action="store_true", help="convert a checkpoint of MMEngine's to the authors'")
    parser.add_argument(
        "--flat", action="store_true", help="with --to-authors: the layout of VMamba's current code, not the older one"
    )
    parser.add_argument(
        "--first-release", action="store_true", help="with --to-authors: the names of VMamba in January 2024"
    )
    parser.add_argument(
        "--one-file",
        action="store_true",
        help="with --to-authors: the names of VMamba's version in one file (downsample.2)",
    )
    args = parser.parse_args()
    release = Release(args.first_release, args.one_file)
    if args.flat and not args.to_authors:
        parser.error("--flat goes with --to-authors; files that are flat are understood without it")
    if any(release) and not args.to_authors:
        parser.error("--first-release and --one-file go with --to-authors; such files are understood without them")
    if args.flat and args.first_release:
        parser.error("--flat and --first-release exclude each other: that release had the older layout alone")
    try:
        if args.to_authors:
            checkpoint, summary = to_authors_file(args.src, args.flat, release)
        else:
            checkpoint, summary = from_authors_file(args.src)
        print(summary)
        print(f"written: {save_named_by_hash(checkpoint, args.dst, args.src)}")
    except ValueError as error:
        raise SystemExit(f"{parser.prog}: {error}") from error


if __name__ == "__main__":
    main()
