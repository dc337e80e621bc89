"""Fewer KV heads: those of a run become one, and every query head stays and reads the one of its run.

The keys and values of a run span more than one head can hold. Values: of what the output projection makes of all of the
run, the D directions with most energy stay, which is the best approximation of that rank (Eckart and Young 1936); the
way back from them is folded into the projection. Keys: a rotary embedding turns features p and p + D/2 together, as
one complex number, so a complex factor per head and pair may move from keys into queries and changes nothing. So the
keys of a run become, pair by pair, their first principal component, weighted by the energy of the queries that read
them. Where features are not turned in this way (norms over queries and keys, another order), keys become their mean.
Heads that are alike are merged without a loss.

GQA (Ainslie et al. 2023, arXiv 2305.13245) takes the mean of both, and trains on.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Shape legend: N = KV heads, Q = query heads, S = KV heads of one run, R = query heads of one KV head, D = features of
# a head, V = all of a run, P = pairs of features, I = inputs (and the bias, as a last one), O = outputs.


@dataclass(frozen=True, kw_only=True)
class Projections:
    """The projections of one attention; biases are a last column of what reads the hidden states."""

    query_QDI: Tensor
    key_NDI: Tensor
    value_NDI: Tensor
    output_OQD: Tensor


def merge_projections(
    whole: Projections, second_II: Tensor, kv_heads: int, *, turns_pairs: bool
) -> Projections:
    """Return the projections with fewer KV heads; runs of neighbouring ones become one.

    Args:
        whole: In float64, or what the device has.
        second_II: E[x x^T] of the hidden states that are read, 1 after them where there are biases; the identity where
            nothing is known of them.
        kv_heads: KV heads that stay, which divide those that are there.
        turns_pairs: Whether features p and p + D/2 of queries and keys may be turned together.
    """
    size, queries = len(whole.key_NDI) // kv_heads, len(whole.query_QDI) // kv_heads
    outputs_OQD = whole.output_OQD.split(queries, 1)
    merged = _merge_turned if turns_pairs else _merge_mean
    keys = [
        merged(query, key, second_II)
        for query, key in zip(whole.query_QDI.split(queries), whole.key_NDI.split(size), strict=True)
    ]
    values = [
        _merge_values(value, output, second_II)
        for value, output in zip(whole.value_NDI.split(size), outputs_OQD, strict=True)
    ]
    return Projections(
        query_QDI=torch.cat([query for query, _ in keys]),
        key_NDI=torch.stack([key for _, key in keys]),
        value_NDI=torch.stack([value for value, _ in values]),
        output_OQD=torch.cat([output for _, output in values], 1),
    )


def _merge_mean(query_QDI: Tensor, key_SDI: Tensor, second_II: Tensor) -> tuple[Tensor, Tensor]:
    return query_QDI, key_SDI.mean(0)


def _merge_turned(query_QDI: Tensor, key_SDI: Tensor, second_II: Tensor) -> tuple[Tensor, Tensor]:
    """Return the queries, and the key that all of them read.

    k_s ~ c_s k, and Re(q conj(c_s k)) = Re(q conj(c_s) conj(k)).
    """
    query_QPI, key_SPI = as_pairs(query_QDI), as_pairs(key_SDI)
    second = second_II.to(query_QPI.dtype)
    size, each = len(key_SPI), len(query_QPI) // len(key_SPI)
    energy_QP = ((query_QPI @ second) * query_QPI.conj()).sum(-1).real
    weight_SP = energy_QP.unflatten(0, (size, each)).sum(1).clamp_min(0).sqrt()
    weight_SP = weight_SP.clamp_min(_tiny(weight_SP))
    weighted_PSI = (key_SPI * weight_SP.unsqueeze(-1)).transpose(0, 1)
    gram_PSS = weighted_PSI @ second @ weighted_PSI.mH
    first_PS = torch.linalg.eigh(gram_PSS).eigenvectors[..., -1]
    shared_PI = (first_PS.conj().unsqueeze(1) @ weighted_PSI).squeeze(1)
    factor_SP = first_PS.T / weight_SP
    scale_P = factor_SP.abs().square().mean(0).sqrt()
    turned_QPI = query_QPI * (factor_SP / scale_P).conj().repeat_interleave(each, 0).unsqueeze(-1)
    return from_pairs(turned_QPI), from_pairs(shared_PI * scale_P.unsqueeze(-1))


def _merge_values(value_SDI: Tensor, output_OQD: Tensor, second_II: Tensor) -> tuple[Tensor, Tensor]:
    """Return the value of a run, and the outputs of its query heads: V ~ B A V for A and B of rank D."""
    size, width = value_SDI.shape[:2]
    each = output_OQD.shape[1] // size
    value_VI = value_SDI.flatten(0, 1)
    read_SDD = torch.stack(
        [part.flatten(0, 1).T @ part.flatten(0, 1) for part in output_OQD.split(each, 1)]
    )  # per KV head, over outputs and the query heads that read it
    root_VV = _root(torch.block_diag(*read_SDD))
    second_VV = value_VI @ second_II @ value_VI.T
    main_VD = torch.linalg.eigh(root_VV @ second_VV @ root_VV).eigenvectors[:, -width:]
    shared_DI = main_VD.T @ root_VV @ value_VI
    back_VD = torch.linalg.solve(root_VV, main_VD)
    # As large as the values were, for formats of few bits.
    scale = (value_VI.square().sum() / size / shared_DI.square().sum().clamp_min(_tiny(shared_DI))).sqrt()
    back_SDD = (back_VD / scale.clamp_min(_tiny(scale))).unflatten(0, (size, width))
    output_OSRD = output_OQD.unflatten(1, (size, each))
    return shared_DI * scale, torch.einsum("osrd,sde->osre", output_OSRD, back_SDD).flatten(1, 2)


def _root(matrix_VV: Tensor) -> Tensor:
    """Return the symmetric square root of a positive matrix, kept off zero."""
    values_V, vectors_VV = torch.linalg.eigh(matrix_VV)
    least = (values_V[-1] * torch.finfo(matrix_VV.dtype).eps ** 0.5).clamp_min(_tiny(values_V))
    root_VV: Tensor = vectors_VV * values_V.clamp_min(least).sqrt() @ vectors_VV.T
    return root_VV


def _tiny(like: Tensor) -> float:
    return math.sqrt(torch.finfo(like.dtype).tiny)


def as_pairs(heads_NDI: Tensor) -> Tensor:
    """Return features p and p + D/2 of heads as one complex number, [N, P, I]."""
    real, imaginary = heads_NDI.chunk(2, dim=-2)
    return torch.complex(real, imaginary)


def from_pairs(heads_NPI: Tensor) -> Tensor:
    """Undo `as_pairs`."""
    return torch.cat([heads_NPI.real, heads_NPI.imag], -2)


def projections_of(attention: Any) -> Projections:
    """Return the projections of an attention with `q_proj`, `k_proj`, `v_proj` and `o_proj`, in float64."""
    width = attention.head_dim
    read = [
        _with_bias(linear).unflatten(0, (-1, width))
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj)
    ]
    output_OQD = attention.o_proj.weight.detach().double().unflatten(1, (-1, width))
    return Projections(query_QDI=read[0], key_NDI=read[1], value_NDI=read[2], output_OQD=output_OQD)


def _with_bias(linear: Any) -> Tensor:
    weight_OI = linear.weight.detach().double()
    last_O1 = weight_OI.new_zeros(len(weight_OI), 1)
    return torch.cat(
        [weight_OI, last_O1 if linear.bias is None else linear.bias.detach().double()[:, None]], 1
    )


@torch.no_grad()
def install(attention: Any, merged: Projections) -> None:
    """Give an attention these projections, in place; what it counts follows."""
    read = {"q_proj": merged.query_QDI, "k_proj": merged.key_NDI, "v_proj": merged.value_NDI}
    for name, weight_NDI in read.items():
        linear, weight_OI = getattr(attention, name), weight_NDI.flatten(0, 1)
        linear.out_features = len(weight_OI)
        linear.weight = _like(linear.weight, weight_OI[:, :-1])
        if linear.bias is not None:
            linear.bias = _like(linear.bias, weight_OI[:, -1])
    attention.o_proj.weight = _like(attention.o_proj.weight, merged.output_OQD.flatten(1, 2))
    attention.num_key_value_groups = len(merged.query_QDI) // len(merged.key_NDI)
    if "num_key_value_heads" in vars(attention):
        attention.num_key_value_heads = len(merged.key_NDI)


def _like(old: torch.nn.Parameter, values: Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(values.to(old.dtype).contiguous(), requires_grad=old.requires_grad)
