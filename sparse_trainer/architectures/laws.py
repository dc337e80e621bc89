"""The laws that every prunable model keeps, one function each. True = it holds, False = it has nothing to say here."""

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from patchers.discovery.discover import discover
from patchers.modeling_pruned import stock_class_of
from patchers.patching.patch import gated
from patchers.surgery import cut
from patchers.units import ATTENTION, CHANNELS, FFN, HEADS, HIDDEN, WIDTH_KINDS
from sparse_trainer.architectures.case import Case, CheckError, cast
from sparse_trainer.architectures.decoding import RUN_ERRORS, decodes_alike
from sparse_trainer.folders.save import save_pruned
from sparse_trainer.inputs.make import forward_outputs

Law = Callable[[Case], bool]
"""True = it holds, False = it has nothing to say of a model; raises where it does not hold."""
EXPECTED_FILE = "expected.safetensors"
"""Inputs and outputs, beside the weights of a cut model."""
INPUT, OUTPUT = "input.", "output."


def _open_gates(case: Case) -> bool:
    """Open gates change nothing."""
    with gated(case.model, case.structure, {}):
        outputs = forward_outputs(case.model, case.inputs)
    for one, other in zip(outputs, case.before, strict=True):
        if not torch.equal(one.nan_to_num(), other.nan_to_num()):
            raise CheckError("gates", "open gates change the outputs.", "")
    return True


def _widths(case: Case) -> bool:
    """Closed heads, KV groups and channels equal their removal."""
    groups = case.structure.of(WIDTH_KINDS)
    if not any(g.num_units > 1 for g in groups):
        return False
    for seed in range(2):
        if not case.equals_cut(case.keep(groups, seed)):
            raise CheckError("gates", "closing units changes no output.", "The check would be void.")
    return True


def _kinds_alone(case: Case) -> bool:
    """Heads alone, channels alone."""
    groups = {kind: [g for g in case.structure.of([kind]) if g.num_units > 1] for kind in WIDTH_KINDS}
    proved = [case.equals_cut(case.keep(groups[kind], 7)) for kind in groups if groups[kind]]
    return any(proved)


def _attention_functions(case: Case) -> bool:
    """Heads cut under both attention implementations."""
    heads = case.structure.of([HEADS])
    if not any(g.num_units > 1 for g in heads) or not getattr(case.model, "_supports_sdpa", False):
        return False
    keep = case.keep(heads, 3)
    for attention in ("eager", "sdpa"):
        model = case.fresh()
        if not _runs(model, case, attention):
            return False
        smaller = copy.deepcopy(model)
        expected = case.masked(keep, model)
        cut(smaller, case.structure, keep)
        case.same(forward_outputs(smaller, case.inputs), expected)
    return True


def _runs(model: PreTrainedModel, case: Case, attention: str) -> bool:
    """Tell whether the whole model runs under an attention: some say that they support what they do not."""
    try:
        model.set_attn_implementation(attention)
        forward_outputs(model, case.inputs)
    except (RuntimeError, ValueError, TypeError):
        return False
    return True


def _branches(case: Case) -> bool:
    """A closed attention or feed-forward branch equals its removal, each alone."""
    done = False
    for kind in (ATTENTION, FFN):
        groups = [g for g in case.structure.of([kind]) if g.stack in case.reached]
        for group in dict.fromkeys((*groups[:1], *groups[-1:])):
            done |= case.equals_cut({group.name: torch.tensor([False])})
    return done


def _layers(case: Case) -> bool:
    """A closed layer equals its removal, config and all."""
    done = False
    for group in case.one_per_stack():
        keep = {group.name: torch.tensor([False])}
        expected = case.masked(keep)
        compact = case.compact(keep)
        case.same(forward_outputs(compact, case.inputs), expected)
        done |= case.changed(expected)
    return done


def _backward(case: Case) -> bool:
    """Gradients reach the cut model as they reach the gated one."""
    groups = case.structure.of(WIDTH_KINDS)
    keep = case.keep([g for g in groups if g.num_units > 1], 5)
    if not keep or not any(value.is_floating_point() for value in case.before):
        return False
    model, smaller = case.fresh(), case.fresh()
    cut(smaller, case.structure, keep)
    with gated(model, case.structure, keep):
        expected = _gradients(model, case)
    found = _gradients(smaller, case)
    shared = [n for n in found if n in expected and found[n].shape == expected[n].shape]
    case.same([found[name] for name in shared], [expected[name] for name in shared])
    return bool(shared)


def _gradients(model: PreTrainedModel, case: Case) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        output = model(**case.inputs)
    values = output if isinstance(output, tuple) else tuple(output.values())
    tensors = [v for v in values if isinstance(v, Tensor) and v.is_floating_point() and v.requires_grad]
    if not tensors:
        return {}
    loss = torch.stack([t.double().nan_to_num().square().mean() for t in tensors]).sum()
    loss.backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None and "_gate." not in n}


def _save(case: Case) -> bool:
    """Uneven widths, a layer and a branch: optimize, save, load; the folder is kept for a fresh process."""
    keep = case.keep([g for g in case.structure.of(WIDTH_KINDS) if g.num_units > 1], 13)
    layers = case.one_per_stack()
    if layers:
        keep[layers[-1].name] = torch.tensor([False])
    expected = case.masked(keep)
    compact = case.compact(keep)
    case.same(forward_outputs(compact, case.inputs), expected)
    _save_folder(case, compact, "")
    if case.folder is not None:
        wide = replace(case, structure=discover(case.model, [HIDDEN]))
        if wide.structure.groups:
            _save_folder(case, wide.compact(wide.keep(wide.structure.groups, 19)), "-hidden")
    return True


def _save_folder(case: Case, compact: PreTrainedModel, suffix: str) -> None:
    """Save a cut model with its inputs and outputs, for a fresh process to load."""
    if case.folder is None:
        return
    name = case.model.config.model_type.replace("/", "-")
    folder = save_pruned(compact, case.folder / f"{name}{suffix}", overwrite=True)
    tensors = {f"{INPUT}{name}": tensor for name, tensor in case.inputs.items()}
    tensors |= {
        f"{OUTPUT}{place}": tensor for place, tensor in enumerate(forward_outputs(compact, case.inputs))
    }
    save_file({k: t.contiguous().clone() for k, t in tensors.items()}, folder / EXPECTED_FILE)


def _hidden(case: Case) -> bool:
    """Hidden features: open gates change nothing; closed ones equal their removal, alone and beside others."""
    wide = replace(case, structure=discover(case.model, (*WIDTH_KINDS, HIDDEN)))
    features = wide.structure.of([HIDDEN])
    if not features:
        return False
    _open_gates(wide)
    groups = wide.structure.of(WIDTH_KINDS)
    for keep in (wide.keep(features, 19), wide.keep([*features, *groups], 23)):
        expected = wide.masked(keep)
        if not case.changed(expected):
            raise CheckError(
                "gates", "closing hidden features changes no output.", "The check would be void."
            )
        compact = wide.compact(keep)
        found = forward_outputs(compact, case.inputs)
        kept_U = keep[features[0].name]
        case.same(found, [_narrowed(e, f, kept_U) for e, f in zip(expected, found, strict=True)])
    return True


def _narrowed(whole: Tensor, found: Tensor, keep_U: Tensor) -> Tensor:
    """Return the kept features of an output that is the residual stream itself, else the output as it is."""
    if whole.shape != found.shape and whole.shape[-1] == keep_U.numel():
        return whole[..., keep_U]
    return whole


def _native(case: Case) -> bool:
    """Equal numbers of channels in every layer, and a layer away: the stock class builds the result by itself."""
    keep = {}
    generator = torch.Generator().manual_seed(17)
    for group in case.structure.of([CHANNELS]):
        half = max(1, group.num_units // 2)
        keep[group.name] = torch.zeros(group.num_units, dtype=torch.bool)
        keep[group.name][torch.randperm(group.num_units, generator=generator)[:half]] = True
    if not keep:
        return False
    compact = case.compact(keep)
    return type(compact) is stock_class_of(compact)


def _default(case: Case) -> bool:
    """With the kernels that users run: open gates change nothing; closed units and layers equal their removal."""
    _open_gates(case)
    found = [law(case) for law in (_widths, _layers, _backward)]
    return any(found)


def _half(case: Case) -> bool:
    """In bfloat16 closed units equal their removal, up to its rounding, where the model runs in it at all."""
    groups = [g for g in case.structure.of(WIDTH_KINDS) if g.num_units > 1]
    model, inputs = case.fresh().bfloat16(), cast(case.inputs, torch.bfloat16)
    try:
        before = forward_outputs(model, inputs)
    except RUN_ERRORS:
        return False
    half = replace(case, model=model, inputs=inputs, before=before)
    return bool(groups) and half.equals_cut(half.keep(groups, 29))


EXACT: dict[str, Law] = {
    "open": _open_gates,
    "widths": _widths,
    "kinds": _kinds_alone,
    "eager+sdpa": _attention_functions,
    "branches": _branches,
    "layers": _layers,
    "backward": _backward,
    "native": _native,
    "hidden": _hidden,
}
"""Laws of a model in double precision, with kernels that compute in it."""
DEFAULT: dict[str, Law] = {
    "default": _default,
    "half": _half,
    "generate": decodes_alike,
    "save": _save,
}
"""Laws of the same model as users run it."""
