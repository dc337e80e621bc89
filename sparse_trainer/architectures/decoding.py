"""Text written token by token, with the cache that a model takes by itself: the gated model and the cut one agree."""

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor
from transformers import PreTrainedModel

from patchers.patching.patch import gated
from patchers.units import ATTENTION, WIDTH_KINDS
from sparse_trainer.architectures.case import Case, CheckError

# Shape legend: B = rows, T = tokens.

RUN_ERRORS: Final = (
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    NotImplementedError,
    ImportError,
    AssertionError,
)
"""What a model raises that does not run in some way."""
FORMS: Final[Mapping[str, Mapping[str, Any]]] = {
    "greedy": {},
    "with the prompt read in pieces": {"prefill_chunk_size": 3},
    "with beams": {"num_beams": 2},
}
"""Ways to decode, with what `generate` calls them."""
_NEW_TOKENS: Final = 4


def decodes_alike(case: Case) -> bool:
    """Widths, a layer, the first attention gone: the same tokens and logits from a left-padded prompt."""
    if not case.model.can_generate():
        return False
    given = _prompt(case)
    forms = [name for name in FORMS if _runs(case.model, given, name)]
    if not forms:
        return False
    for decision in _decisions(case):
        whole, compact = case.fresh(), case.compact(decision)
        for name in forms:
            with gated(whole, case.structure, decision):
                expected = _written(whole, given, name)
            found = _written(compact, given, name)
            if not torch.equal(found[0], expected[0]):
                raise CheckError("generate", f"the cut model writes other tokens, {name}.", "")
            case.same(found[1:], expected[1:])
    return True


def _decisions(case: Case) -> list[dict[str, Tensor]]:
    """Return what to cut: caches count tokens at one layer, and look for the first of a sort."""
    closed = torch.tensor([False])
    first = {g.stack: g for g in reversed(case.structure.of([ATTENTION])) if g.stack in case.reached}
    found = [case.keep(case.structure.of(WIDTH_KINDS), 11), {g.name: closed for g in case.one_per_stack()}]
    return [decision for decision in (*found, {g.name: closed for g in first.values()}) if decision]


def _prompt(case: Case) -> dict[str, Tensor]:
    """Return the inputs of a decoder with the padding in front of the text; of others as they are, without a target."""
    given = {name: t for name, t in case.inputs.items() if not name.startswith(("decoder_", "future_"))}
    mask_BT = given.get("attention_mask")
    if mask_BT is None or mask_BT.dim() != 2 or case.model.config.is_encoder_decoder:
        return given
    padding = [int(row_T.numel() - row_T.sum()) for row_T in mask_BT]
    return {
        name: torch.stack([row_T.roll(n) for row_T, n in zip(t, padding, strict=True)])
        if t.shape == mask_BT.shape
        else t
        for name, t in given.items()
    }


def _runs(model: PreTrainedModel, given: Mapping[str, Tensor], form: str) -> bool:
    """Tell whether the model as it is decodes these inputs in this form."""
    try:
        _written(model, given, form)
    except RUN_ERRORS:
        return False
    return True


def _written(model: PreTrainedModel, given: Mapping[str, Tensor], form: str) -> list[Tensor]:
    """Return the tokens, and what led to them: logits, [steps, B, vocabulary], or the scores of the beams, [B]."""
    start = {"decoder_start_token_id": 1} if model.config.is_encoder_decoder else {}
    generate: Any = model.generate
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        answer = generate(
            **given, **start, **FORMS[form], max_new_tokens=_NEW_TOKENS, min_new_tokens=_NEW_TOKENS,
            do_sample=False, use_cache=True, return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
    led = answer["sequences_scores"] if "sequences_scores" in answer else torch.stack(answer["logits"])
    return [answer["sequences"], led]
