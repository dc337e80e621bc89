"""DeciLM: the form of Llama with other widths, and branches that are gone, which vLLM, SGLang and mlx-lm read."""
