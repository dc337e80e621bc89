"""Hangs masks on a model: which matrices share which scores, and how their blocks lie."""

from typing import Final, final

import torch
from torch import Tensor, nn

from patchers.layers import features, linear_at
from patchers.patching.gates import Gate
from patchers.patching.hard_concrete import ConcreteGate
from patchers.patching.masks import MaskFactor, WeightMask
from patchers.patching.patch import attach_mask, patch
from patchers.units import CHANNELS, HEADS, Group, Structure
from sparse_trainer.errors import ArgumentError, UnsupportedModelError
from sparse_trainer.training.mask_options import DISABLED, MaskOptions, Part, PartOptions, Regularization
from sparse_trainer.training.mask_sites import Site

_TIE_BREAK: Final = 1e-4
"""Scores that start equal differ by this much: ties go to the larger weights, not to the first in memory."""
_L0_START: Final = 2.197
"""Nine of ten blocks are open (Sanh et al., arXiv 2005.07683, appendix)."""


def attach_masks(model: nn.Module, structure: Structure, options: MaskOptions) -> list[Site]:
    """Hang the masks that are asked for, all open; channels of whole FFNs get gates.

    Raises:
        ArgumentError: a block size that does not divide a matrix; nothing to mask; options of a decoder without one.
        UnsupportedModelError: a matrix that no mask fits.
    """
    plan = _Plan(model, structure, options)
    for group in structure.of([HEADS]):
        plan.attention(group)
    for group in structure.of([CHANNELS]):
        plan.dense(group)
    _check_sites(plan.sites, options.regularization)
    plan.attach()
    with torch.no_grad():
        for site in plan.sites:
            if site.score is not None:
                _start(site.score, options, site.norms(model), is_l0=site.method == "l0")
    return plan.sites


@final
class _Plan:
    """Collects the factors of every linear first, for one linear may have several."""

    def __init__(self, model: nn.Module, structure: Structure, asked: MaskOptions) -> None:
        self.model, self.structure, self.asked = model, structure, asked
        self.sites: list[Site] = []
        self.factors: dict[tuple[str, ...], list[MaskFactor]] = {}
        self.gates: dict[str, Gate] = {}

    def attention(self, group: Group) -> None:
        """Take in the matrices of one attention."""
        widths = {s.path: s.width for s in group.slices if s.axis == "out"}
        inputs, output = tuple(widths), group.consumer
        options = self.asked.parts.get("attention")
        if options is not None and options.shape == "joint":
            self._check_joint(inputs)
            self._blocks("attention", group, options, inputs, widths[inputs[0]])
        elif options is not None:
            for path in inputs:
                self._blocks("attention", group, options, (path,), widths[path])
        with_dense = self.asked.output_with_dense
        part: Part = "dense" if with_dense else "attention"
        behind = self.asked.parts.get(part)
        if behind is not None and behind.shape == "1d_alt":
            self._add(
                part, group, behind, (output,), (1, self._count(output, 1, "rows", behind.rows or 1, part))
            )
        elif behind is not None:
            self._blocks(part, group, behind, (output,), group.consumer_slice.width, swapped=not with_dense)
        self._two_of_four("attention", group, (*inputs, output))

    def dense(self, group: Group) -> None:
        """Take in the matrices of one feed-forward module."""
        options = self.asked.parts.get("dense")
        paths = tuple(dict.fromkeys(s.path for s in group.slices))
        if options is not None and options.shape == "1d_alt":
            self._channels(group, options, paths)
        elif options is not None and group.consumer_tensor is not None:
            raise UnsupportedModelError(
                group.block,
                "has experts in one tensor, which no mask fits.",
                "Use the shape 1d_alt: channels.",
            )
        elif options is not None:
            for path in paths:
                self._blocks("dense", group, options, (path,), 1)
        if group.consumer_tensor is None:
            self._two_of_four("dense", group, paths)

    def _channels(self, group: Group, options: PartOptions, paths: tuple[str, ...]) -> None:
        """Give whole channels a gate: the mask over rows of the producers and columns of the consumer, from less."""
        divide("dense_block_rows", options.rows or 1, group.num_units, f"the channels of {group.name}")
        if options.method == "l0":
            gate: Gate = ConcreteGate(group.num_units)
        else:
            gate = Gate(group.num_units, scored=options.method != "magnitude")
        self.gates[group.name] = gate
        self._site("dense", group, options, paths, gate)

    def attach(self) -> None:
        """Put masks on the model, then gates."""
        for paths, factors in self.factors.items():
            outputs = features(linear_at(self.model, paths[0]))[0]
            attach_mask(self.model, paths, WeightMask(factors, outputs, masks_bias=self.asked.masks_bias))
        chosen = tuple(g for g in self.structure.groups if g.name in self.gates)
        if chosen:
            patch(
                self.model,
                Structure(groups=chosen, stacks=self.structure.stacks),
                lambda group: self.gates[group.name],
            )

    def _blocks(
        self,
        part: Part,
        group: Group,
        options: PartOptions,
        paths: tuple[str, ...],
        head: int,
        *,
        swapped: bool = False,
    ) -> None:
        """Give linears of one shape the factors of one part; `swapped` turns the block by 90 degrees."""
        rows = self._count(paths[0], 1 if swapped else 0, "rows", options.rows or head, part)
        columns = self._count(paths[0], 0 if swapped else 1, "cols", options.cols, part)
        along_O, along_I = (columns, rows) if swapped else (rows, columns)
        if options.shape == "1d":
            self._add(part, group, options, paths, (along_O, 1), root=0.5)
            self._add(part, group, options, paths, (1, along_I), root=0.5)
        else:
            self._add(part, group, options, paths, (along_O, along_I))

    def _count(self, path: str, axis: int, option: str, size: int, part: Part) -> int:
        """Return how many blocks lie along one axis of a linear; size 0 = one."""
        whole = features(linear_at(self.model, path))[axis]
        if size == 0:
            return 1
        side = "rows" if axis == 0 else "columns"
        return divide(f"{part}_block_{option}", size, whole, f"the {side} of {path}")

    def _add(
        self,
        part: Part,
        group: Group,
        options: PartOptions,
        paths: tuple[str, ...],
        blocks: tuple[int, int],
        root: float = 1.0,
    ) -> None:
        """Add one factor over some linears."""
        scored, concrete = options.method != "magnitude", options.method == "l0"
        factor = MaskFactor(blocks, linear_at(self.model, paths[0]).weight, scored=scored, concrete=concrete)
        self.factors.setdefault(paths, []).append(factor)
        self._site(part, group, options, paths, factor, root)

    def _two_of_four(self, part: Part, group: Group, paths: tuple[str, ...]) -> None:
        method = self.asked.ampere
        for path in paths if method != DISABLED else ():
            linear = linear_at(self.model, path)
            outputs, inputs = features(linear)
            divide("ampere_pruning_method", 4, inputs, f"the columns of {path}")
            factor = MaskFactor(
                (outputs, inputs), linear.weight, scored=method != "magnitude", soft=method == "annealing"
            )
            self.factors.setdefault((path,), []).append(factor)
            self._site(part, group, None, (path,), factor)

    def _site(
        self,
        part: Part,
        group: Group,
        options: PartOptions | None,
        paths: tuple[str, ...],
        holder: MaskFactor | Gate,
        root: float = 1.0,
    ) -> None:
        """Remember what a factor or a gate decides on."""
        site = Site(
            part=part,
            in_decoder=_in_decoder(self.structure, group),
            method=self.asked.ampere if options is None else options.method,
            options=options,
            paths=paths,
            holder=holder,
            group=group,
            root=root,
        )
        self.sites.append(site)

    def _check_joint(self, paths: tuple[str, ...]) -> None:
        if self.asked.ampere != DISABLED:
            raise ArgumentError(
                "attention_pruning_method, ampere_pruning_method",
                "joint scores leave no place for 2 of 4.",
                "Drop one of the two.",
            )
        shapes = {path: features(linear_at(self.model, path)) for path in paths}
        if len(set(shapes.values())) > 1:
            raise ArgumentError(
                "attention_pruning_method",
                f"joint scores need matrices of one shape, not {', '.join(f'{p} {s}' for p, s in shapes.items())}.",
                "Mask them by blocks.",
            )


def _check_sites(sites: list[Site], penalty: Regularization) -> None:
    """Refuse to train where nothing would be masked, or where an option has nothing to act on."""
    if not sites:
        raise ArgumentError(
            "dense_pruning_method, attention_pruning_method, ampere_pruning_method",
            "mask nothing of this model.",
            "Set one of them, or exclude less; where nothing is to be pruned, a plain Trainer does.",
        )
    for part, share in penalty.decoder_shares.items():
        has_one = any(site.in_decoder and site.part == part for site in sites)
        if share is not None and not has_one:
            raise ArgumentError(
                f"decoder_{part}_lambda",
                "no mask of its kind is in a decoder behind an encoder.",
                f"Set {part}_lambda.",
            )


def divide(where: str, size: int, whole: int, what: str) -> int:
    """Return how many blocks of a size make up the whole.

    >>> divide("dense_block_rows", 32, 64, "the rows")
    2
    """
    if whole % size == 0:
        return whole // size
    divisors = [d for d in range(1, whole + 1) if whole % d == 0]
    nearest = {
        max((d for d in divisors if d < size), default=1),
        min((d for d in divisors if d > size), default=whole),
    }
    raise ArgumentError(
        where,
        f"{size} does not divide {whole}, {what}.",
        f"Nearest: {' and '.join(map(str, sorted(nearest)))}.",
    )


def _in_decoder(structure: Structure, group: Group) -> bool:
    """Tell whether a group sits in the decoder of a model that has an encoder too."""
    names = [stack.path.split(".") for stack in structure.stacks]
    return any("encoder" in parts for parts in names) and "decoder" in group.stack.split(".")


def _start(score: Tensor, asked: MaskOptions, norms: Tensor, *, is_l0: bool) -> None:
    scale = asked.scale if asked.scale is not None else (_L0_START if is_l0 else 0.0)
    if asked.init == "uniform":
        nn.init.uniform_(score, -scale, scale)
    elif asked.init == "kaiming":
        nn.init.kaiming_uniform_(score if score.dim() > 1 else score.unsqueeze(0), a=5**0.5)
    else:
        nn.init.constant_(score, scale)
        norms = norms.sqrt()
        score.add_((norms / norms.max().clamp_min(1e-12)).to(score.dtype), alpha=_TIE_BREAK)
