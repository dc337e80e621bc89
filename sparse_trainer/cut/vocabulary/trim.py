"""`trim_vocabulary`: tokens that a corpus does not use leave embeddings, head and tokenizer."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from patchers.discovery.discover import discover
from patchers.patching.merging import has_adapters
from patchers.patching.patch import is_patched
from patchers.units import KINDS
from sparse_trainer.budget.counting import parameter_count
from sparse_trainer.cut.decision import Decision, Request
from sparse_trainer.cut.model_class import record
from sparse_trainer.cut.record import attach_plan, make_plan, measures_of, plan_of
from sparse_trainer.cut.self_check import SelfCheckError, check_same, outputs_of
from sparse_trainer.cut.vocabulary.rows import named_ids, rows_of, with_rows
from sparse_trainer.cut.vocabulary.tokenizer import count_tokens, pieces_of, read_fast, rebuilt
from sparse_trainer.data.corpora.encode import in_template
from sparse_trainer.errors import ArgumentError, CheckpointError, DataError
from sparse_trainer.fields import check_counts
from sparse_trainer.inputs.sample import sample_batch
from sparse_trainer.plan.parts import KeptTokens, Sizes

# Shape legend: N = tokens that stay.


@dataclass(frozen=True, kw_only=True, slots=True)
class Trimmed:
    """A model and its tokenizer with fewer tokens, and what became of the corpus."""

    model: PreTrainedModel
    """Its plan says which tokens stayed."""
    tokenizer: PreTrainedTokenizerBase
    kept: KeptTokens
    tokens: int
    """In the corpus, as the tokenizer cut it before."""
    recut: int
    """Texts of the corpus that are cut in another way since; 0 where every token of the corpus stays."""
    parameters: Sizes
    """Before and after this."""


def trim_vocabulary(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    *,
    keep_minimum_count: int = 1,
    corpora: Mapping[str, str] | None = None,
    check: bool = True,
) -> Trimmed:
    """Return a copy of a model and of its tokenizer without the tokens that texts do not use.

    What stays: the tokens of the texts, also as messages in the chat template, and what they are merged from; single
    characters that occur; special and added tokens and those that a config names; the bytes of tokenizers that fall
    back on them. Texts of the corpus are cut into the same pieces as before, and what the model says of the pieces that
    stay is the same. Other text is spelled in shorter pieces, or bytes, and where there are none it is unknown.

    Args:
        tokenizer: A fast one: WordPiece, BPE, Unigram or one token per word.
        texts: Gone through several times: a list, or another iterable, but no iterator. The lines of a text also count
            as texts by themselves.
        keep_minimum_count: How often a token has to occur to stay; above 1, rare words of the corpus are cut otherwise.
        corpora: Name -> SHA-256 of the files that the texts are from, for the plan.
        check: Compare what the model says before and after, on a small batch.

    Raises:
        ArgumentError: A count below 1, an iterator, or a model in the middle of pruning or with adapters.
        CheckpointError: A tokenizer that cannot be trimmed, or that does not belong to the model.
        DataError: No text.
        UnsupportedModelError: A model without embeddings of tokens, or of which nothing can be pruned.
    """
    check_counts(keep_minimum_count=keep_minimum_count)
    if isinstance(texts, Iterator):
        raise ArgumentError("texts", "can be gone through once only.", "Give a list.")
    _check_finished(model)
    fast, rows = read_fast(tokenizer), rows_of(model)
    if max(fast.ids().values()) >= rows:
        raise CheckpointError(
            type(tokenizer).__name__,
            f"has tokens beyond the {rows} that the model has embeddings for.",
            "Give the tokenizer of the model; or call resize_token_embeddings first.",
        )
    if not any(text.strip() for text in texts):
        raise DataError("corpus", "holds no text.", "Give a file with text.")
    named = named_ids(model) | set(tokenizer.all_special_ids)
    counts = count_tokens(tokenizer, texts)
    alone = count_tokens(tokenizer, _lines(texts))
    # A conversation repeats its text.
    told = Counter(
        n for ids in pieces_of(tokenizer, in_template(tokenizer, chain(texts, _lines(texts)))) for n in {*ids}
    )
    # The same text is counted in three ways, so the most of them is how often a token occurs.
    occurs = counts | alone | told
    used = {number for number, count in occurs.items() if count >= keep_minimum_count} | named
    tokens = fast.kept(used)
    smaller = rebuilt(tokenizer, fast.keeping(tokens), {token: n for n, token in enumerate(tokens)})
    keep = _in_order(tokens.values(), named, rows)
    kept = KeptTokens(size=rows, keep=keep, minimum_count=keep_minimum_count, corpora=dict(corpora or {}))
    recut = sum(_count_recut(tokenizer, smaller, part, keep) for part in (texts, list(_lines(texts))))
    if recut and keep_minimum_count == 1:
        raise SelfCheckError(
            type(tokenizer).__name__,
            f"cuts {recut} texts of the corpus in another way afterwards.",
            "Please report this tokenizer.",
        )
    made = _trimmed_model(model, kept, check=check)
    sizes = Sizes(dense=parameter_count(model), compact=parameter_count(made))
    return Trimmed(
        model=made, tokenizer=smaller, kept=kept, tokens=counts.total(), recut=recut, parameters=sizes
    )


def _check_finished(model: PreTrainedModel) -> None:
    if is_patched(model):
        raise ArgumentError("model", "still has gates.", "Give optimize_model(model).")
    if has_adapters(model):
        raise ArgumentError("model", "has adapters.", "Call merge_and_unload() first.")


def _lines(texts: Iterable[str]) -> Iterator[str]:
    """Yield the lines of texts that have several: what begins one is cut as at the start of a text."""
    for text in texts:
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) > 1:
            yield from lines


def _in_order(tokens: Iterable[int], named: Iterable[int], rows: int) -> list[int]:
    """Return the ids that stay, by their new ids: rows that a config names, and no token has, come last."""
    ids = list(tokens)
    have = set(ids)
    return ids + sorted(number for number in named if 0 <= number < rows and number not in have)


def _count_recut(
    before: PreTrainedTokenizerBase, after: PreTrainedTokenizerBase, texts: Iterable[str], keep: Sequence[int]
) -> int:
    """Return how many texts two tokenizers cut into different pieces."""
    pairs = zip(pieces_of(before, texts), pieces_of(after, texts), strict=True)
    return sum(old != [keep[number] for number in new] for old, new in pairs)


def _trimmed_model(model: PreTrainedModel, kept: KeptTokens, *, check: bool) -> PreTrainedModel:
    """Return a copy of a model with these tokens, and a plan that says so."""
    made = with_rows(model, kept["keep"])
    if check:
        _check_outputs(model, made, kept["keep"])
    structure = discover(made, KINDS)
    decision = Decision(structure=structure, keep={}, request=Request(method="vocabulary"))
    before, after = (
        measures_of(part, discover(part, KINDS), decision.request.sequence_length) for part in (model, made)
    )
    plan = make_plan(made, decision, reached=1.0, before=before, after=after)
    earlier = plan_of(model)
    if earlier is not None:
        attach_plan(made, earlier)
    record(made, dataclasses.replace(plan, vocabulary=kept))
    made.train(model.training)
    return made


def _check_outputs(model: PreTrainedModel, made: PreTrainedModel, keep: Sequence[int]) -> None:
    """Raise `SelfCheckError` where a model says something else of the tokens that stay."""
    keep_N = torch.tensor(keep)
    batch = sample_batch(made)
    old = {name: _renamed(name, tensor, keep_N) for name, tensor in batch.items()}
    check_same(
        outputs_of(model, whole=True, batch=old), made, what="outputs with fewer tokens", kept_K=keep_N
    )


def _renamed(name: str, tensor: Tensor, keep_N: Tensor) -> Tensor:
    """Return inputs with the ids that tokens had before."""
    return keep_N.to(tensor.device)[tensor] if name.endswith("input_ids") else tensor
