"""The conversions by name; a new one is a file and a line here."""

from sparse_trainer.convert.base import Conversion
from sparse_trainer.convert.decilm.target import DeciLM
from sparse_trainer.convert.executorch.target import ExecuTorch
from sparse_trainer.convert.gguf.target import Gguf
from sparse_trainer.convert.onnx.target import Onnx
from sparse_trainer.convert.openvino.target import OpenVino

CONVERSIONS: dict[str, Conversion] = {
    "decilm": DeciLM(),
    "executorch": ExecuTorch(),
    "gguf": Gguf(),
    "onnx": Onnx(),
    "openvino": OpenVino(),
}
