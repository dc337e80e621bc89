"""Extractive question answering: which part of a context answers a question.

This file lies beside a model that sparse-trainer saved, and `config.json` names it, because transformers 5 has no such
pipeline of its own. It needs torch, numpy and transformers alone:

    from transformers import pipeline
    answer = pipeline("question-answering", model=FOLDER, trust_remote_code=True)
    answer(question="Who wrote it?", context="Ann wrote it.")  # {"score": ..., "start": 0, "end": 3, "answer": "Ann"}
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from transformers.pipelines.base import ChunkPipeline

# Shape legend: T = tokens of one chunk: question and a stretch of the context.
Chunk = tuple[Any, Any, Any]
"""start_logits_T, end_logits_T, offsets_T2: where each token lies in the context; (0, 0) = it is not of the context."""
Span = tuple[float, int, int]
"""Sum of both logits, and the first and the last letter + 1."""
_Base: Any = ChunkPipeline
"""Its types promise less than what its subclasses in transformers take."""
CONSIDERED = 20
"""So many starts and ends of a chunk are tried, as in the reference evaluation of SQuAD in transformers."""


def best_spans(chunks: Sequence[Chunk], max_answer_len: int, top_k: int = 1) -> list[Span]:
    """Return the spans of a context with the highest sums of start and end logits, the best first, each once.

    Args:
        chunks: Stretches of one context, which may overlap.
        max_answer_len: In tokens.
    """
    found: dict[tuple[int, int], float] = {}
    considered = max(CONSIDERED, top_k)
    for start_T, end_T, offsets_T2 in chunks:
        inside_T = offsets_T2[:, 1] > offsets_T2[:, 0]
        starts, ends = (_highest(logits_T, inside_T, considered) for logits_T in (start_T, end_T))
        lengths = ends[None, :] - starts[:, None] + 1
        fits = (lengths > 0) & (lengths <= max_answer_len)
        sums = np.where(fits, start_T[starts][:, None] + end_T[ends][None, :], -np.inf)
        for flat in np.argsort(-sums, axis=None)[:top_k]:
            first, last = starts[flat // len(ends)], ends[flat % len(ends)]
            if fits.flat[flat]:
                span = (int(offsets_T2[first, 0]), int(offsets_T2[last, 1]))
                found[span] = max(found.get(span, -np.inf), float(sums.flat[flat]))
    ranked = sorted(found.items(), key=lambda item: -item[1])[:top_k]
    return [(total, first, last) for (first, last), total in ranked]


def no_answer(chunks: Sequence[Chunk], first_tokens: Sequence[int]) -> tuple[float, float]:
    """Return start and end logit of "no answer": of the chunk that finds it least likely.

    Args:
        first_tokens: Where each chunk has the token that stands for it (CLS).
    """
    pairs = [
        (float(start_T[at]), float(end_T[at]))
        for (start_T, end_T, _), at in zip(chunks, first_tokens, strict=True)
    ]
    return min(pairs, key=sum)


def _highest(logits_T: Any, inside_T: Any, count: int) -> Any:
    """Return the places of the highest logits inside the context, in no order."""
    places = np.flatnonzero(inside_T)
    if len(places) <= count:
        return places
    return places[np.argpartition(-logits_T[places], count)[:count]]


def _log_sum(chunks: Sequence[Chunk], side: int, nothing: tuple[float, ...]) -> float:
    """Return the logarithm that turns logits into probabilities over a whole context, and no answer if that is one."""
    inside = [chunk[side][chunk[2][:, 1] > chunk[2][:, 0]] for chunk in chunks]
    logits = np.concatenate([*inside, np.array(nothing[side : side + 1])])
    highest = logits.max()
    return float(highest + np.log(np.exp(logits - highest).sum()))


class QuestionAnsweringPipeline(_Base):  # type: ignore[misc]
    """Answers questions with a part of their context.

    Options, of the pipeline or of a call; what the model was trained with is the default:
        top_k: How many answers per question; 1 = a mapping, more = a list of them.
        max_seq_len: Tokens of question and context together; longer contexts are read in overlapping chunks.
        doc_stride: Tokens by which chunks overlap.
        max_answer_len: Tokens of an answer at most.
        handle_impossible_answer: Whether "" (no answer) may be the answer.
    """

    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_video_processor = False
    _load_tokenizer = True

    def _sanitize_parameters(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        known = ("max_seq_len", "doc_stride", "max_answer_len", "handle_impossible_answer", "top_k")
        unknown = [name for name in options if name not in known]
        if unknown:
            raise TypeError(
                f"question-answering has no option {', '.join(unknown)}; it has {', '.join(known)}."
            )
        return (
            {name: options[name] for name in known[:2] if name in options},
            {},
            {name: options[name] for name in known[2:] if name in options},
        )

    def _default(self, name: str, otherwise: Any) -> Any:
        trained = getattr(self.model.config, "question_answering", None) or {}
        return trained.get(name, otherwise)

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Answer one question, or several.

        Args:
            args: `{"question": ..., "context": ...}`, or a list of such.
            options: Instead of it `question=` and `context=`, texts or lists (one context may serve all questions);
                `batch_size`; and the options of the class.
        """
        asked, is_one = _examples(args, options)
        answers = list(super().__call__(asked, **options))
        return answers[0] if is_one else answers

    def preprocess(
        self, inputs: Mapping[str, str], max_seq_len: int | None = None, doc_stride: int | None = None
    ) -> Iterator[dict[str, Any]]:
        """Yield the chunks of a context, each with the question in front."""
        question, context = inputs["question"].strip(), inputs["context"]
        room = min(self.tokenizer.model_max_length, max_seq_len or self._default("max_seq_len", 384))
        stride = self._default("doc_stride", 128) if doc_stride is None else doc_stride
        left = room - len(self.tokenizer(question, "")["input_ids"])
        if left <= 1:
            raise ValueError(
                f"the question leaves no room for a context in {room} tokens: raise max_seq_len."
            )
        encoded = self.tokenizer(
            question,
            context,
            truncation="only_second",
            max_length=room,
            stride=min(stride, left - 1),
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_tensors=None,
        )
        count = len(encoded["input_ids"])
        for row in range(count):
            tokens = self.tokenizer.pad(
                {name: [encoded[name][row]] for name in self.tokenizer.model_input_names if name in encoded},
                return_tensors="pt",
            )
            offsets = [
                pair if of == 1 else (0, 0)
                for pair, of in zip(encoded["offset_mapping"][row], encoded.sequence_ids(row), strict=True)
            ]
            like = tokens["input_ids"]
            yield {
                "is_last": row == count - 1,
                "context": context,
                "offsets": like.new_tensor([offsets]),
                "is_first": (like == _first_token(self.tokenizer, like)).to(like.dtype),
                **tokens,
            }

    def _forward(self, chunk: dict[str, Any]) -> dict[str, Any]:
        known = ("is_last", "context", "offsets", "is_first")
        found = self.model(**{name: value for name, value in chunk.items() if name not in known})
        return {
            "is_last": chunk["is_last"],
            "context": chunk["context"],
            "offsets": chunk["offsets"],
            "is_first": chunk["is_first"],
            "start": found["start_logits"],
            "end": found["end_logits"],
        }

    def postprocess(
        self,
        outputs: Sequence[Mapping[str, Any]],
        max_answer_len: int | None = None,
        handle_impossible_answer: bool | None = None,
        top_k: int = 1,
    ) -> Any:
        """Return the best answers over all chunks; their scores are probabilities over the whole context."""
        longest = max_answer_len or self._default("max_answer_len", 30)
        may_fail = (
            self._default("handle_impossible_answer", False)
            if handle_impossible_answer is None
            else handle_impossible_answer
        )
        context = outputs[0]["context"]
        chunks = [
            (chunk["start"][0].float().numpy(), chunk["end"][0].float().numpy(), chunk["offsets"][0].numpy())
            for chunk in outputs
        ]
        nothing: tuple[float, ...] = ()
        spans = best_spans(chunks, longest, top_k)
        if may_fail:
            nothing = no_answer(chunks, [int(chunk["is_first"][0].argmax()) for chunk in outputs])
            spans = sorted([*spans, (sum(nothing), 0, 0)], reverse=True)[:top_k]
        if not spans:  # a context without a single token
            spans, nothing = [(float("-inf"), 0, 0)], (0.0, 0.0)
        total = _log_sum(chunks, 0, nothing) + _log_sum(chunks, 1, nothing)
        answers = [
            {"score": float(np.exp(logit - total)), "start": start, "end": end, "answer": context[start:end]}
            for logit, start, end in spans
        ]
        return answers[0] if top_k == 1 else answers


def _first_token(tokenizer: Any, input_ids: Any) -> Any:
    """Return the token that stands for "no answer": CLS, else the first one."""
    cls = tokenizer.cls_token_id
    return cls if cls is not None and bool((input_ids == cls).any()) else input_ids[0, 0]


def _examples(args: tuple[Any, ...], options: dict[str, Any]) -> tuple[list[Mapping[str, str]], bool]:
    """Return questions with their contexts, taken out of the options, and whether there was just one."""
    if args:
        given = args[0]
        asked = [given] if isinstance(given, Mapping) else list(given)
        is_one = isinstance(given, Mapping)
    else:
        question, context = options.pop("question", None), options.pop("context", None)
        is_one = isinstance(question, str)
        questions = [question] if is_one else list(question or ())
        contexts = [context] * len(questions) if isinstance(context, str) else list(context or ())
        if len(contexts) != len(questions):
            raise ValueError(
                f"{len(questions)} questions, {len(contexts)} contexts: give one context, or one each."
            )
        asked = [{"question": q, "context": c} for q, c in zip(questions, contexts, strict=True)]
    for number, example in enumerate(asked):
        for key in ("question", "context"):
            if (
                not isinstance(example, Mapping)
                or not isinstance(example.get(key), str)
                or not example[key].strip()
            ):
                raise ValueError(f"example {number} has no text under {key!r}.")
    return asked, is_one
