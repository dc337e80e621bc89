"""Criteria of one-shot pruning: a new one is one file here, one line below, one row in the law tests."""

from sparse_trainer.criteria.calibration.afr import Afr
from sparse_trainer.criteria.calibration.angular import Angular
from sparse_trainer.criteria.calibration.avss import Avss
from sparse_trainer.criteria.calibration.base import Evidence, WidthCriterion
from sparse_trainer.criteria.calibration.block_influence import BlockInfluence
from sparse_trainer.criteria.calibration.fisher import Fisher
from sparse_trainer.criteria.calibration.ifv import Ifv
from sparse_trainer.criteria.calibration.kfac_obs import KfacObs
from sparse_trainer.criteria.calibration.last import Last
from sparse_trainer.criteria.calibration.layer_gate import LearnedGate
from sparse_trainer.criteria.calibration.magnitude import Magnitude
from sparse_trainer.criteria.calibration.minitron import Minitron
from sparse_trainer.criteria.calibration.obs import Obs
from sparse_trainer.criteria.calibration.perplexity import LossWithout
from sparse_trainer.criteria.calibration.random import Random
from sparse_trainer.criteria.calibration.refer_svd import ReferSvd
from sparse_trainer.criteria.calibration.relative_norm import RelativeNorm
from sparse_trainer.criteria.calibration.snip import Snip
from sparse_trainer.criteria.calibration.taylor import Taylor
from sparse_trainer.criteria.calibration.taylor_2nd import TaylorSecond
from sparse_trainer.criteria.calibration.wanda import Wanda
from sparse_trainer.criteria.calibration.wifn import Wifn
from sparse_trainer.criteria.calibration.wifv import Wifv

WIDTH_CRITERIA: dict[str, type[WidthCriterion]] = {
    "magnitude": Magnitude,
    "random": Random,
    "taylor": Taylor,
    "taylor_2nd": TaylorSecond,
    "fisher": Fisher,
    "wanda": Wanda,
    "wifv": Wifv,
    "ifv": Ifv,
    "wifn": Wifn,
    "snip": Snip,
    "refer_svd": ReferSvd,
    "afr": Afr,
    "minitron": Minitron,
    "obs": Obs,
    "kfac_obs": KfacObs,
    "block_influence": BlockInfluence,
    "angular": Angular,
    "relative_norm": RelativeNorm,
    "avss": Avss,
    "perplexity": LossWithout,
    "layer_gate": LearnedGate,
    "last": Last,
}

__all__ = ["WIDTH_CRITERIA", "Evidence", "WidthCriterion"]
