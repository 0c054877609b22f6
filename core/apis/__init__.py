"""The APIs that a backend speaks: OpenAI's, llama.cpp's, Anthropic's and Ollama's."""
