"""K-FAC OBS: its score is what a quadratic loss loses, by brute force; its gradients are those of autograd."""

import pytest
import torch
from torch import Tensor

from patchers.layers import linear_at, weight_OI
from sparse_trainer.criteria.calibration.base import Evidence
from sparse_trainer.criteria.calibration.kfac_obs import KfacObs
from sparse_trainer.errors import ArgumentError
from sparse_trainer.one_shot.prune import prune
from sparse_trainer.statistics.collect import collect
from sparse_trainer.statistics.moments import Moments
from sparse_trainer.statistics.output_gradients import OutputGradients
from sparse_trainer.statistics.requests import Statistics
from tests.fixtures.oneshot_models import MODELS, model_of, padded, sequences, widths

# Shape legend: O = outputs, I = inputs, T = tokens.


def rise(weight_OI: Tensor, second_II: Tensor, felt_OO: Tensor, gone: list[int]) -> Tensor:
    """Return the least 1/2 E[d^T G d] of a linear without some columns, by solving for all weights at once."""
    kept = [i for i in range(weight_OI.shape[1]) if i not in gone]
    outputs = len(weight_OI)
    # The loss as a quadratic in the change of all entries: its Hessian is H kron G; entries of gone columns are fixed.
    hessian = torch.kron(second_II, felt_OO)
    change = torch.zeros(weight_OI.numel(), dtype=weight_OI.dtype)
    fixed = torch.tensor([i * outputs + o for i in gone for o in range(outputs)])
    free = torch.tensor([i * outputs + o for i in kept for o in range(outputs)])
    change[fixed] = -weight_OI.T.flatten()[fixed]
    change[free] = torch.linalg.solve(hessian[free][:, free], -hessian[free][:, fixed] @ change[fixed])
    return 0.5 * change @ hessian @ change


@pytest.mark.parametrize("name", MODELS)
def test_score_is_the_rise_of_a_quadratic_loss_after_the_refit(name: str) -> None:
    model = model_of(name)
    structure = widths(model)
    batches = sequences(model, (60,) * 8)
    criterion = KfacObs(rounds=1, damping=1e-6)
    statistics = collect(model, structure, batches, criterion.requests())
    scores = criterion.scores(Evidence(model=model, structure=structure, statistics=statistics))
    for group in structure.groups[:2]:
        weight = weight_OI(linear_at(model, group.consumer)).detach()
        second_II = statistics.of(Moments(covariance=True))[group.consumer].second_II
        second_II = second_II + 1e-6 * second_II.diagonal().mean() * torch.eye(len(second_II))
        felt_OO = statistics.of(OutputGradients())[group.consumer].second_OO
        felt_OO = felt_OO + 1e-9 * felt_OO.diagonal().mean() * torch.eye(len(felt_OO))
        for unit in range(min(group.num_units, 3)):
            gone = group.consumer_slice.index_UW[unit].tolist()
            torch.testing.assert_close(
                scores[group.name][unit], rise(weight, second_II, felt_OO, gone), rtol=1e-4, atol=1e-14
            )


def test_gradients_are_those_of_autograd_without_padding() -> None:
    model = model_of("llama")
    structure = widths(model)
    single = sequences(model, (18, 11))
    found = collect(model, structure, [padded(single)], [OutputGradients()]).of(OutputGradients())
    path = structure.groups[0].consumer
    linear, seen = model.get_submodule(path), []
    handle = linear.register_forward_hook(lambda m, a, y: (y.retain_grad(), seen.append(y))[1])
    for batch in single:
        output = model(**batch, labels=batch["input_ids"])
        (output.loss * (batch["input_ids"].shape[1] - 1)).backward()
    handle.remove()
    gradient_TO = torch.cat([y.grad[0] for y in seen if y.grad is not None])
    torch.testing.assert_close(found[path].second_OO, gradient_TO.T @ gradient_TO / len(gradient_TO))


def test_what_goes_later_never_scores_less() -> None:
    model = model_of("llama")
    structure = widths(model)
    batches = sequences(model, (60,) * 8)
    statistics: Statistics = collect(model, structure, batches, KfacObs().requests())
    evidence = Evidence(model=model, structure=structure, statistics=statistics)
    one, many = KfacObs(rounds=1).scores(evidence), KfacObs(rounds=8).scores(evidence)
    channels = structure.of(["channels"])[0]
    size = channels.num_units
    first = one[channels.name].argsort()[: -(-size // 8)]
    assert set(first.tolist()) == set(many[channels.name].argsort()[: len(first)].tolist())
    assert not torch.equal(one[channels.name].argsort(), many[channels.name].argsort())


def test_options_and_a_whole_cut() -> None:
    with pytest.raises(ArgumentError, match="Give positive numbers"):
        KfacObs(rounds=0)
    model = model_of("gpt2")
    batches = sequences(model, (60,) * 4)
    plan = prune(model, batches, criterion="kfac_obs", density=0.7, reconstruct="least_squares")[1]
    assert plan.method == "kfac_obs, repaired by least_squares"
    with pytest.raises(ArgumentError, match="gradients"):
        prune(model, batches, criterion="kfac_obs", by_block=True)
