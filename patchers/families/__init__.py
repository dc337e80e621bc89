"""Naming families: a new one is one table here, one line below, one row in the conformance test."""

from patchers.families.bert import BERT
from patchers.families.deberta_v2 import DEBERTA_V2
from patchers.families.distilbert import DISTILBERT
from patchers.families.mpnet import MPNET
from patchers.families.tables import AttentionTable, Family, FfnTable

FAMILIES: dict[str, Family] = {family.name: family for family in (BERT, DISTILBERT, MPNET, DEBERTA_V2)}

__all__ = ["FAMILIES", "AttentionTable", "Family", "FfnTable"]
