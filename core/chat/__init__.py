"""Chats: messages and tools become a prompt; the model's text becomes content, reasoning and tool calls."""
