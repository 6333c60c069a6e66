"""Count parameters and MACs of every config, and write them and the tables of the zoo.

    python -m benchmarks.zoo            # or make zoo
    python -m benchmarks.zoo --check    # write nothing, and say what differs

Results and addresses of files are in the metafiles, and are written there by hand. The command replaces two numbers of
each model in them, Parameters and FLOPs, and the tables between the comments that name it in the READMEs of configs and
in docs/zoo.md.
"""

import argparse
import logging
import warnings

from .configs import ROOT
from .pages import differences, texts


def main() -> None:
    """Write what differs, or say what does."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.zoo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing, and say what differs")
    arguments = parser.parse_args()
    # What OpenMMLab says of itself, once for each config.
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    try:
        if arguments.check:
            if difference := next(differences(), None):
                parser.exit(1, f"{difference}\n")
            print("metafiles and tables are up to date")
            return
        for path, text in texts().items():
            if path.read_text() != text:
                path.write_text(text)
                print(f"wrote {path.relative_to(ROOT)}")
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
