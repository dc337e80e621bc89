"""Names of files that several rooms look for in a folder."""

ADAPTER_CONFIG = "adapter_config.json"
"""Of peft, beside the weights of an adapter."""
GATE_FILE = "pruning_gates.safetensors"
"""Of a checkpoint with adapters: gates, masks and scores, which an adapter does not hold."""
STATE_FILE = "pruning_state.json"
"""Of a checkpoint: the pruning arguments that it was trained with."""
