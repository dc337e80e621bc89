"""Self-contained folders under other task heads than the one that was cut."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM

from patchers.discovery.discover import discover
from sparse_trainer.cut.optimize import optimize_model
from sparse_trainer.folders.save import save_pruned
from tests.architectures.tiny import tiny_model
from tests.fixtures.compact_models import patched, tiny, uneven_keep
from tests.fixtures.same import assert_same_answer


def test_an_uneven_folder_loads_under_another_task_head(tmp_path: Path) -> None:
    model = tiny(dtype=torch.float32)
    compact = optimize_model(patched(model, uneven_keep(discover(model))))
    save_pruned(compact, tmp_path / "folder")
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "folder", trust_remote_code=True).eval()
    ids_BT = torch.arange(5, 21).view(2, 8)
    assert_same_answer(again.bert(ids_BT)[0], compact.bert(ids_BT)[0])
    assert again(ids_BT).logits.shape == (2, 8, 99)


@pytest.mark.parametrize(("model_type", "others"), [("t5", 0), ("bart", 0), ("gpt2", 3)])
def test_the_other_heads_of_a_type_are_named_where_they_hold_the_whole_model(
    model_type: str, others: int
) -> None:
    model = tiny_model(model_type)
    structure = discover(model, ["channels"])
    keep = {g.name: torch.arange(g.num_units) < 5 + g.layer for g in structure.groups}
    auto_map = optimize_model(patched(model, keep), check=False).config.auto_map
    own = type(model).__name__
    heads = {ref.rpartition(".")[2] for auto, ref in auto_map.items() if auto != "AutoModel"}
    assert own in auto_map["AutoModel"] or own in heads
    assert len(heads - {own}) == others
