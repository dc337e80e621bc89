"""Random inputs that look like real ones, for a model of any size: tokens with padded rows, pictures, sound."""

from typing import Any, Final

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from sparse_trainer.errors import UnsupportedModelError
from sparse_trainer.inputs.kinds import LAST_WORD, field_of, part_of, reads_choices
from sparse_trainer.inputs.limits import positions_of
from sparse_trainer.inputs.make import inputs_for
from sparse_trainer.inputs.placeholders import special_ids

# Shape legend: V = vocabulary, B = rows, T = tokens.

_ROWS: Final = 3
_LONGEST: Final = 16


def sample_batch(model: Any) -> dict[str, Tensor]:
    """Return the batch on which a model is compared with its cut self.

    It is the same for every model of the same vocabulary and input size.

    Raises:
        UnsupportedModelError: what the model reads is not known.
    """
    if reads_tokens_only(model):
        length = min(_LONGEST, positions_of(model.config) or _LONGEST)
        # Every token has to see a real one: none may look back over padding only.
        padding = min(length // 2, (field_of(model.config, "sliding_window") or length) - 1)
        return tokens_for(model, rows=_ROWS, length=length, padding=padding)
    try:
        return inputs_for(model, rows=_ROWS)
    except (AttributeError, KeyError, NotImplementedError, TypeError, ValueError, RuntimeError) as error:
        raise UnsupportedModelError(
            type(model).__name__,
            f"the self-check cannot make up {model.main_input_name} for it ({error}).",
            "Please report this model; in Python check=False skips the self-check.",
        ) from error


def reads_tokens_only(model: Any) -> bool:
    """Tell whether a model reads token ids, and has neither an encoder beside its decoder nor towers."""
    config = model.config
    towers = any(isinstance(value, PreTrainedConfig) for value in vars(config).values())
    alone = not towers and not config.is_encoder_decoder and "vocab_size" in config.to_dict()
    return bool(model.main_input_name == "input_ids" and alone)


def tokens_for(model: Any, *, rows: int, length: int, padding: int = 0) -> dict[str, Tensor]:
    """Return random words of a model's vocabulary, none of them with a meaning of its own; always the same.

    They are [rows, length]; [rows, 1, length] for a model that chooses between texts.

    Args:
        padding: Tokens at the end of all rows but the first that are no words.
    """
    config = model.config
    ids_V = torch.arange(field_of(part_of(config, "text_config"), "vocab_size") or LAST_WORD)
    pad = field_of(config, "pad_token_id") or 0
    words_V = ids_V[~torch.isin(ids_V, torch.tensor([pad, *special_ids(config)]))]
    words_V = words_V if len(words_V) else ids_V
    generator = torch.Generator().manual_seed(0)
    ids_BT = words_V[torch.randint(len(words_V), (rows, length), generator=generator)]
    mask_BT = torch.ones_like(ids_BT)
    mask_BT[1:, length - padding :] = 0
    ids_BT[mask_BT == 0] = pad
    device = next(model.parameters()).device
    shape = (rows, 1, length) if reads_choices(model) else (rows, length)
    return {
        "input_ids": ids_BT.view(shape).to(device),
        "attention_mask": mask_BT.view(shape).to(device),
    }
