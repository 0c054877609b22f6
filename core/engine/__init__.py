"""The engine: llama.cpp, driven by one thread that steps all generations of a model together."""
