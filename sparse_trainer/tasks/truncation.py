"""Pairs of texts of which one is cut and the other is not: whether that one leaves room."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from sparse_trainer.data.splits import DataOptions
from sparse_trainer.errors import DataError


def check_room(
    pairs: Sequence[tuple[str, str]],
    rows: Sequence[int],
    data: DataOptions,
    tokenizer: PreTrainedTokenizerBase,
    where: str,
) -> None:
    """Raise `DataError` for a text that must not be cut and leaves no token of the other; tokenizers fail there.

    Args:
        rows: The row that each pair is of.
    """
    if data.truncation == "longest_first":
        return
    kept, what = (0, "first") if data.truncation == "only_second" else (1, "second")
    room = data.max_length - tokenizer.num_special_tokens_to_add(pair=True)
    encoded = tokenizer([pair[kept] for pair in pairs], add_special_tokens=False, verbose=False)["input_ids"]
    for row, ids in zip(rows, encoded, strict=True):
        if len(ids) >= room:
            raise DataError(
                f"data: {where}, row {row}",
                f"the {what} text has {len(ids)} tokens, and data.truncation={data.truncation} leaves no room for "
                f"the other one in {data.max_length}.",
                "Give a larger data.max_length, or data.truncation=longest_first.",
            )
