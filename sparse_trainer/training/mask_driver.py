"""Weight masks over a training: when they close, what the scores cost, how dense the matrices are."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, final

import torch
from torch import Tensor, nn

from patchers.layers import linear_at, weight_OI
from patchers.patching.gates import Gate
from patchers.patching.hard_concrete import BETA, HIGH, LOW, ConcreteGate, drawn, presence
from patchers.patching.masks import MaskFactor, WeightMask
from patchers.patching.patch import masks_of
from patchers.patching.shards import whole_weights
from patchers.units import Structure
from patchers.zeros import bake_all
from sparse_trainer.budget.masks import n_of_m
from sparse_trainer.budget.schedule import Schedule
from sparse_trainer.cut.decision import Request
from sparse_trainer.cut.record import remember_request
from sparse_trainer.errors import ArgumentError, NonFiniteError
from sparse_trainer.training.mask_options import DISABLED, MaskOptions, Part
from sparse_trainer.training.mask_placement import attach_masks
from sparse_trainer.training.mask_selection import BY_FRACTION, Method, keep_by_method
from sparse_trainer.training.mask_sites import Site, protected_blocks
from sparse_trainer.training.protect import protected_units

# Shape legend: R x C = blocks, U = units.


@final
class MaskDriver:
    """Drives the masks of one model; all state that a restart needs lives in the model."""

    def __init__(self, model: nn.Module, structure: Structure, options: MaskOptions) -> None:
        self.model, self.structure, self.options = model, structure, options
        self.sites: list[Site] = attach_masks(model, structure, options)
        remember_request(model, Request(method=options.method))
        self.masks: dict[str, WeightMask] = masks_of(model)
        self._protected = self._find_protected()
        self.wants_calibration = False
        self.schedule: Schedule = options.schedule
        self.progress = 0.0

    def _find_protected(self) -> dict[int, Tensor]:
        """Return what may not close, by number of the site: of units that a first run left."""
        units = protected_units(self.options.protection, self.model, self.structure)
        found = {
            number: protected_blocks(self.model, site, units[site.group.name])
            for number, site in enumerate(self.sites)
            if site.options is not None and site.group.name in units
        }
        if any(self.sites[number].method == "l0" for number in found):
            raise ArgumentError(
                "protect_plan", "the method l0 draws its masks at random.", "Take another method, or gates."
            )
        return found

    @property
    def gates(self) -> dict[str, Gate]:
        """The gates that stand for masks over whole channels, by group name."""
        return {site.group.name: site.holder for site in self.sites if isinstance(site.holder, Gate)}

    def score_parameters(self) -> list[nn.Parameter]:
        """Return what is learned."""
        return [site.score for site in self.sites if site.score is not None]

    def score_groups(self) -> list[dict[str, Any]]:
        """Return the optimizer group of the scores: a rate of their own, no decay."""
        scores = self.score_parameters()
        rate = self.options.learning_rate
        return [{"params": scores, "lr": rate, "weight_decay": 0.0}] if scores else []

    def begin(self, total_steps: int, step: int, warmup_steps: int) -> None:
        """Start, or go on at `step`: then the masks are those that came with the model."""
        self.schedule = self.options.schedule_over(total_steps, warmup_steps)
        self.progress = step / total_steps
        if step == 0:
            self.select()

    @property
    def finished(self) -> bool:
        """Whether the threshold is the final one; all scores but those of `l0` go on moving blocks in and out."""
        return self.schedule.frozen(self.progress)

    def step(self, progress: float, *, due: bool = True) -> None:
        """Move to the state after an optimizer step; rebuild the masks where that is due, or the threshold final."""
        was_finished, self.progress = self.finished, progress
        if due or (self.finished and not was_finished):
            self.select(fixed=was_finished)

    @torch.no_grad()
    def select(self, *, fixed: bool = False) -> None:
        """Make every mask anew from its score; where the structure is `fixed`, those of `l0` stay as they are."""
        unscored = any(site.score is None for site in self.sites)
        with whole_weights(self.model) if unscored else nullcontext():
            self._select(fixed=fixed)

    def _select(self, *, fixed: bool) -> None:
        remaining = self.schedule.remaining(self.progress)
        for number, site in enumerate(self.sites):
            # Values of 0 and 1 pass no gradient of the loss to the scores of l0: they have nothing to say any more.
            if fixed and site.method == "l0":
                continue
            draw = None if self.finished else f"{self.options.seed}/{self.progress}/{number}"
            _rebuild(self.model, site, self.options, remaining, draw)
            if number in self._protected:
                keep = _keep_of(site)
                self._protected[number] = self._protected[number].to(keep.device)
                _set(site.holder, torch.where(self._protected[number], 1, keep), None)
        for mask in set(self.masks.values()):
            mask.settle()

    def calibrate(self, batches: Iterable[Mapping[str, Any]]) -> None:
        """Read nothing: scores are learned."""

    def refitted_parameters(self) -> list[nn.Parameter]:
        """Return none: nothing is refitted."""
        return []

    def observe(self, loss_scale: Tensor | None = None) -> None:
        """Read nothing: scores are learned."""

    def decided(self) -> dict[str, Tensor]:
        """Return the mask of every site by the first of its linears; several may act on one."""
        return {f"{site.paths[0]} ({number})": _keep_of(site) for number, site in enumerate(self.sites)}

    def log(self) -> dict[str, float]:
        """Return nothing beside the density."""
        return {}

    @contextmanager
    def final(self) -> Iterator[None]:
        """Show the masks of the final threshold for the time of a `with` block."""
        if self.finished:
            yield
            return
        at, self.progress = self.progress, 1.0
        kept = {
            name: b.clone() for name, b in self.model.named_buffers() if "_gate." in name or "_mask." in name
        }
        self.select()
        try:
            yield
        finally:
            self.progress = at
            buffers = dict(self.model.named_buffers())
            for name, value in kept.items():
                buffers[name].copy_(value)

    def penalty(self) -> Tensor | None:
        """Return lambda times the mean size of the scores, averaged by part of the model.

        lambda rises from 0 with the schedule. Shared scores count once, those of a fixed structure nothing.
        """
        asked = self.options.regularization
        weight = asked.weight * (1.0 - self.schedule.remaining(self.progress))
        fixed = "l0" if self.finished else None
        learning = any(site.score is not None and site.method != fixed for site in self.sites)
        if asked.kind == DISABLED or weight == 0 or not learning:
            return None
        sizes: dict[tuple[Part, bool], list[Tensor]] = {}
        for site in self.sites:
            if site.score is not None:
                size = torch.sigmoid(site.score) if asked.kind == "l1" else presence(site.score)
                # 0 instead of nothing: what is left keeps its share of the mean.
                mean = size.mean() if site.method != fixed else site.score.new_zeros(())
                sizes.setdefault((site.part, site.in_decoder), []).append(mean)
        parts = [asked.share(*key) * torch.stack(means).mean() for key, means in sizes.items()]
        total: Tensor = weight * torch.stack(parts).mean()
        return total

    def check_finite(self, step: int) -> None:
        """Raise `NonFiniteError` if a score is NaN or infinite."""
        bad = [
            site.paths[0]
            for site in self.sites
            if site.score is not None and not bool(site.score.isfinite().all())
        ]
        if bad:
            raise NonFiniteError(
                f"step {step}",
                f"scores are NaN or infinite at {', '.join(bad[:3])}.",
                "Training stopped before saving over the last checkpoint. Lower the learning rates or check the data.",
            )

    def density(self) -> float:
        """Return the fraction of the weights that the masks, and the gates in their stead, keep."""
        kept = total = 0.0
        shares = {path: gate for s in self.sites if isinstance(gate := s.holder, Gate) for path in s.paths}
        for path in {path for site in self.sites for path in site.paths}:
            weight = weight_OI(linear_at(self.model, path))
            share = float(shares[path].keep_U.float().mean()) if path in shares else 1.0
            if path in self.masks:
                share *= float((self.masks[path].keep_OI(weight.shape[1]) != 0).float().mean())
            kept, total = kept + share * weight.numel(), total + weight.numel()
        return kept / total

    def report(self) -> dict[str, Any]:
        """Return what was asked and reached."""
        return {
            "scoring": self.options.method,
            "target": "weights",
            "scope": "matrix",
            "density_asked": None,
            "thresholds": {name: part.final for name, part in self.options.parts.items()},
            "density_reached": self.density(),
        }

    def end(self) -> None:
        """Zero what the masks close in the parameters themselves, at the final threshold; the outputs stay."""
        if self.finished:
            with whole_weights(self.model, write=True):
                bake_all(self.model, self.structure, self.gates)


def _keep_of(site: Site) -> Tensor:
    """Return the mask of a site, shape [U] or [R, C]."""
    return site.holder.keep_U if isinstance(site.holder, Gate) else site.holder.keep_RC


def _rebuild(model: nn.Module, site: Site, asked: MaskOptions, remaining: float, draw: str | None) -> None:
    """Make one mask anew; `draw` names the noise of soft values, None = what training multiplies by is the mask."""
    score = site.norms(model) if site.score is None else site.score.detach()
    if site.options is None:
        keep = n_of_m(score).to(score.dtype)
        fading = (
            _fading(keep, asked.temperatures, remaining)
            if draw is not None and site.method == "annealing"
            else None
        )
        _set(site.holder, keep, fading)
        return
    options = site.options
    threshold = options.final + (options.initial - options.final) * remaining
    if options.method in BY_FRACTION:
        threshold = threshold**site.root
    if isinstance(site.holder, Gate):
        keep = _in_runs(score, options.rows or 1, options.method, threshold, asked.least)
    else:
        keep = keep_by_method(options.method, score, threshold, asked.least)
    noise = None
    if draw is not None and options.method == "l0":
        noise = drawn(score.numel(), draw, score.device).view_as(score)
    _set(site.holder, keep, noise)


def _in_runs(score_U: Tensor, width: int, method: Method, threshold: float, least: float) -> Tensor:
    """Choose among runs of channels, by the mean score of a run, shape [U]."""
    keep_R = keep_by_method(method, score_U.view(-1, width).mean(1), threshold, least)
    return keep_R.repeat_interleave(width)


def _fading(keep: Tensor, temperatures: tuple[float, float], remaining: float) -> Tensor:
    """Return the factors of `annealing`: e^-temperature for what 2 of 4 leave out."""
    first, last = temperatures
    return keep + (1.0 - keep) * math.exp(-(last + (first - last) * remaining))


def _set(holder: MaskFactor | Gate, keep: Tensor, soft: Tensor | None) -> None:
    """Close a mask or a gate; `soft` is noise where the value is a hard-concrete number, else the value itself."""
    if isinstance(holder, MaskFactor):
        value = soft
        if holder.concrete and soft is not None and holder.score_RC is not None:
            s_RC = torch.sigmoid((holder.score_RC + soft) / BETA)
            value = s_RC.mul(HIGH - LOW).add(LOW).clamp(0.0, 1.0)
        holder.set_keep(keep, value)
        return
    holder.set_keep(keep)
    if isinstance(holder, ConcreteGate):
        if soft is None:
            holder.hold()
        else:
            holder.noise_U.copy_(soft)
