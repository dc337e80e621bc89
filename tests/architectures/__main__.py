"""Measure tiny models of these types, default all, and print the verdicts; `--write` sets down the matrix and its page.

python -m tests.architectures bert llama
python -m tests.architectures --draft verdicts.jsonl --write
"""

import argparse
import sys
from pathlib import Path

from sparse_trainer.architectures.matrix import Matrix
from sparse_trainer.architectures.verdicts import checks, failures
from tests.architectures.measure import merged, rerun
from tests.architectures.page import check_checkout, write_matrix

_CHECKOUT = Path(__file__).parents[2]


def main() -> int:
    """Return 0 where every type passes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("types", nargs="*")
    parser.add_argument(
        "--draft", type=Path, help="takes verdicts as they come; those in it are not measured again"
    )
    parser.add_argument(
        "--write", action="store_true", help="write architectures.json and docs/architectures.md"
    )
    asked = parser.parse_args()
    if asked.write:
        check_checkout(_CHECKOUT)
    matrix = rerun(asked.types, draft=asked.draft, tell=lambda said: print(said, file=sys.stderr))
    for name, report in matrix.reports.items():
        print(name, checks(report) or report.reason, failures(report), sep="\t")
    print(matrix.summary())
    if asked.write:
        write_matrix(merged(Matrix.load(), matrix), _CHECKOUT)
    return 0 if all(report.ok for report in matrix.reports.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
