"""Metrics of embeddings on four texts whose neighbours are known."""

import numpy as np
import pytest
from transformers import EvalPrediction

from sparse_trainer.tasks.embeddings.metrics import METRICS, Embedded, Pairs, embedding_metrics, ranks

ANGLES = np.radians([0, 50, 10, 60])
EMBEDDINGS = np.stack([np.cos(ANGLES), np.sin(ANGLES)], 1)
PAIRS = Pairs(queries_P=[0, 1], documents_P=[3, 2], scores_P=[0.1, 0.9])
"""The first query is nearer to the other's document; so is the second."""


def measured(names: list[str], pairs: Pairs, scale: float = 1.0) -> dict[str, float]:
    prediction = EvalPrediction(predictions=scale * EMBEDDINGS, label_ids=EMBEDDINGS[::-1])
    return embedding_metrics(names, pairs)(prediction)


def test_ranks_count_the_documents_of_all_pairs() -> None:
    embedded = Embedded(embeddings_ND=EMBEDDINGS, targets_ND=EMBEDDINGS, pairs=PAIRS)
    assert ranks(embedded).tolist() == [2, 2]
    turned = Pairs(queries_P=[0, 1, 0], documents_P=[2, 3, 2])
    assert ranks(Embedded(embeddings_ND=EMBEDDINGS, targets_ND=EMBEDDINGS, pairs=turned)).tolist() == [
        1,
        1,
        1,
    ]


def test_documents_that_cannot_be_told_apart_are_not_found() -> None:
    same = np.ones((4, 2)) / np.sqrt(2)
    assert ranks(Embedded(embeddings_ND=same, targets_ND=same, pairs=PAIRS)).tolist() == [2, 2]


def test_more_queries_than_a_block_are_ranked_alike() -> None:
    many = Pairs(queries_P=[0, 1] * 700, documents_P=[3, 2] * 700)
    assert ranks(Embedded(embeddings_ND=EMBEDDINGS, targets_ND=EMBEDDINGS, pairs=many)).tolist() == [2] * 1400


def test_each_metric_by_hand_whatever_the_length_of_embeddings() -> None:
    found = measured(list(METRICS), PAIRS, scale=7.0)
    assert found["recall@1"] == 0
    assert found["recall@5"] == found["recall@10"] == 1
    assert found["mrr@10"] == pytest.approx(1 / 2)
    assert found["ndcg@10"] == pytest.approx(1 / np.log2(3))
    assert found["cosine"] == pytest.approx(np.cos(np.radians([60, 40])).mean())
    # The pair of the lower score is 60 degrees apart, the other one 40.
    assert found["spearman"] == pytest.approx(1)
