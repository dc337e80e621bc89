"""Named data sets and local files, as calibration batches, running text and questions."""

from sparse_trainer.data.corpora.base import Corpus, Part, Question
from sparse_trainer.data.corpora.batches import calibration_batches
from sparse_trainer.data.corpora.encode import Frame, encode, frame_of, stream
from sparse_trainer.data.corpora.read import check_source, find, joined, questions, rows, texts
from sparse_trainer.data.corpora.table import CORPORA

__all__ = [
    "CORPORA",
    "Corpus",
    "Frame",
    "Part",
    "Question",
    "calibration_batches",
    "check_source",
    "encode",
    "find",
    "frame_of",
    "joined",
    "questions",
    "rows",
    "stream",
    "texts",
]
