"""How close embeddings are to those of the dense model, and how well texts are found by them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from transformers import EvalPrediction

Floats = NDArray[np.floating[Any]]
# Shape legend: N = texts, P = pairs, K = documents, D = hidden features.

Needs = Literal["nothing", "pairs", "scores"]
_BLOCK = 1024
"""Queries that are compared with all documents at once."""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Which of the embedded texts belong together."""

    queries_P: Sequence[int]
    """Row of the first text of each pair."""
    documents_P: Sequence[int]
    """Row of the second one."""
    scores_P: Sequence[float] | None = None
    """How similar people find the two."""


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """Embeddings of length 1 of the same texts by the model at hand and by the dense one, and their pairs."""

    embeddings_ND: Floats
    targets_ND: Floats
    pairs: Pairs | None

    def cosines_P(self) -> Floats:
        """Return the cosine of the two texts of each pair."""
        assert self.pairs is not None
        queries_PD = self.embeddings_ND[list(self.pairs.queries_P)]
        cosines_P: Floats = (queries_PD * self.embeddings_ND[list(self.pairs.documents_P)]).sum(-1)
        return cosines_P


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number about embeddings."""

    needs: Needs
    """What there has to be beside the texts: pairs of them, and scores of the pairs."""
    compute: Callable[[Embedded], float]


def ranks(embedded: Embedded) -> NDArray[np.int64]:
    """Return the place of each pair's document among all documents, by cosine with the query; 1 = the first [P].

    Each text that is a document of some pair is one document; those as similar as the right one stand before it.
    """
    pairs = embedded.pairs
    assert pairs is not None
    rows_K, own_P = np.unique(np.asarray(pairs.documents_P), return_inverse=True)
    queries_P, documents_KD = np.asarray(pairs.queries_P), embedded.embeddings_ND[rows_K]
    found = []
    for start in range(0, len(queries_P), _BLOCK):
        block = slice(start, start + _BLOCK)
        cosines_PK = embedded.embeddings_ND[queries_P[block]] @ documents_KD.T
        right_P1 = np.take_along_axis(cosines_PK, own_P[block, None], axis=1)
        found.append((cosines_PK >= right_P1).sum(1))
    return np.concatenate(found)


def _cosine(embedded: Embedded) -> float:
    return float((embedded.embeddings_ND * embedded.targets_ND).sum(-1).mean())


def _recall(count: int) -> Metric:
    """Share of the queries whose document is among the first `count`."""
    return Metric(needs="pairs", compute=lambda embedded: float((ranks(embedded) <= count).mean()))


def _reciprocal(embedded: Embedded) -> float:
    ranks_P = ranks(embedded)
    return float(np.where(ranks_P <= 10, 1 / ranks_P, 0).mean())


def _gain(embedded: Embedded) -> float:
    ranks_P = ranks(embedded)
    return float(np.where(ranks_P <= 10, 1 / np.log2(1 + ranks_P), 0).mean())


def _spearman(embedded: Embedded) -> float:
    from scipy.stats import spearmanr  # slow, and for this metric alone

    assert embedded.pairs is not None
    return float(spearmanr(embedded.cosines_P(), embedded.pairs.scores_P).statistic)


METRICS: Mapping[str, Metric] = {
    "cosine": Metric(needs="nothing", compute=_cosine),
    "recall@1": _recall(1),
    "recall@5": _recall(5),
    "recall@10": _recall(10),
    "mrr@10": Metric(needs="pairs", compute=_reciprocal),
    "ndcg@10": Metric(needs="pairs", compute=_gain),
    "spearman": Metric(needs="scores", compute=_spearman),
}
"""Mean cosine with the dense model's embedding of the same text; of pairs, whether the second text is found by the
first among all second texts (with one right document, nDCG@10 is 1 / log2(1 + rank) within the first ten); rank
correlation of cosines with people's scores."""


def embedding_metrics(
    names: Sequence[str], pairs: Pairs | None
) -> Callable[[EvalPrediction], dict[str, float]]:
    """Return the `compute_metrics` of a Trainer: predictions are embeddings [N, D], labels the dense model's."""

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        embedded = Embedded(
            embeddings_ND=_units(np.asarray(prediction.predictions)),
            targets_ND=_units(np.asarray(prediction.label_ids)),
            pairs=pairs,
        )
        return {name: METRICS[name].compute(embedded) for name in names}

    return compute


def _units(embeddings_ND: Floats) -> Floats:
    lengths_N1 = np.linalg.norm(embeddings_ND, axis=-1, keepdims=True)
    units_ND: Floats = embeddings_ND / np.maximum(lengths_N1, 1e-12)
    return units_ND
