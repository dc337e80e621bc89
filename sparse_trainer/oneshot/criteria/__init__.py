"""Criteria of one-shot width pruning: a new one is one file here, one line below, one row in the law tests."""

from sparse_trainer.oneshot.criteria.afr import Afr
from sparse_trainer.oneshot.criteria.base import Evidence, WidthCriterion
from sparse_trainer.oneshot.criteria.fisher import Fisher
from sparse_trainer.oneshot.criteria.ifv import Ifv
from sparse_trainer.oneshot.criteria.magnitude import Magnitude
from sparse_trainer.oneshot.criteria.minitron import Minitron
from sparse_trainer.oneshot.criteria.obs import Obs
from sparse_trainer.oneshot.criteria.random import Random
from sparse_trainer.oneshot.criteria.refer_svd import ReferSvd
from sparse_trainer.oneshot.criteria.snip import Snip
from sparse_trainer.oneshot.criteria.taylor import Taylor
from sparse_trainer.oneshot.criteria.taylor_2nd import TaylorSecond
from sparse_trainer.oneshot.criteria.wanda import Wanda
from sparse_trainer.oneshot.criteria.wifn import Wifn
from sparse_trainer.oneshot.criteria.wifv import Wifv

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
