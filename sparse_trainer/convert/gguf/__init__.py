"""GGUF: one file that llama.cpp, and all that builds on it, reads; also of models with other sizes in every layer."""
