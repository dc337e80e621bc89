"""What libraries say on stderr, put shorter where it is as it should be, and left alone where it is not."""

import logging
import os
import re
import sys
import warnings

_ROW = re.compile(r"^(\S+) +\| +(\w+) +\|", re.MULTILINE)
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def quieten() -> None:
    """Set up logging for a command: short lines on stderr, and no bars of libraries where nobody watches."""
    if not sys.stderr.isatty():
        # Each step of a bar would be a line of a log file. Set before anything imports tqdm.
        os.environ.setdefault("TQDM_DISABLE", "1")
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(said_once)
    logging.basicConfig(handlers=[handler], format="%(levelname)s %(name)s: %(message)s")
    # Of transformers, where anybody reads what a config counts for all layers: folders of ours say so on purpose.
    logging.getLogger("transformers.integrations.heterogeneity").setLevel(logging.ERROR)
    logging.getLogger("transformers.modeling_utils").addFilter(shorten_report)
    # peft 0.21 asks transformers 5.24 for a property by its old name: nothing that who runs a command could change.
    warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)


def said_once(record: logging.LogRecord) -> bool:
    """Leave a record to the library that prints it by itself, though it hands it on as well.

    transformers does so wherever the variable CI is set, which services that run tests do.
    """
    library = logging.getLogger(record.name.partition(".")[0])
    silent = all(isinstance(handler, logging.NullHandler) for handler in library.handlers)
    return silent or library is logging.root


def shorten_report(record: logging.LogRecord) -> bool:
    """Put a report of loaded weights in one line where all it says is that a head is new; keep any other as it is."""
    said = _COLOURS.sub("", record.getMessage())
    if "LOAD REPORT" in said:
        rows = [row for row in _ROW.findall(said) if row[0] != "Key"]
        if rows and all(status == "MISSING" for _, status in rows):
            names = ", ".join(sorted(name for name, _ in rows))
            record.msg, record.args = f"new weights, which training has to fill: {names}", None
    return True
