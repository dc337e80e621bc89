"""Criteria of one-shot width pruning: a new one is one file here, one line below, one row in the law tests."""

from sparse_trainer.width_criteria.afr import Afr
from sparse_trainer.width_criteria.base import Evidence, WidthCriterion
from sparse_trainer.width_criteria.fisher import Fisher
from sparse_trainer.width_criteria.ifv import Ifv
from sparse_trainer.width_criteria.magnitude import Magnitude
from sparse_trainer.width_criteria.minitron import Minitron
from sparse_trainer.width_criteria.obs import Obs
from sparse_trainer.width_criteria.random import Random
from sparse_trainer.width_criteria.refer_svd import ReferSvd
from sparse_trainer.width_criteria.snip import Snip
from sparse_trainer.width_criteria.taylor import Taylor
from sparse_trainer.width_criteria.taylor_2nd import TaylorSecond
from sparse_trainer.width_criteria.wanda import Wanda
from sparse_trainer.width_criteria.wifn import Wifn
from sparse_trainer.width_criteria.wifv import Wifv

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
}

__all__ = ["WIDTH_CRITERIA", "Evidence", "WidthCriterion"]
