"""Chats: messages and tools become a prompt; the model's text becomes content, reasoning and tool calls.

In reading order:

    syntaxes.py       how families of models write tool calls
    tools.py          the tools that a request offers, and which must be called
    forced.py         the grammar that makes the model call one
    markers.py        special tokens in a client's text are text
    template.py       messages and tools become the prompt, by the model's own template
    calls.py          reads a call, a character at a time
    parser.py         takes an answer apart as it comes
    conversation.py   all of it together: one request against one model

Words:

    delta         a part of an answer that has become certain, as OpenAI streams them
    marker        a text that may be a special token, such as <tool_call>
    plain         text in which llama.cpp looks for no special tokens
    manner        how one template wants messages with tool calls
    turn          one answer to a conversation, while it comes
    wish          what a request says the answer must look like: a grammar, a schema, or a call; it may have one only
"""
