"""Chats: messages and tools become a prompt; the model's text becomes content, reasoning and tool calls.

In reading order:

    messages.py       a request's messages, checked
    tools.py          the tools that a request offers, and which must be called
    syntaxes.py       what there is to say of how a family of models writes answers
    families.py       the families that are known, and which of them a template speaks of
    builtin.py        templates by name
    sandbox.py        where a template runs
    markers.py        special tokens in a client's text are text
    template.py       messages and tools become the prompt, by the model's own template
    arguments.py      the grammar of a call's arguments
    guided.py         the grammar of an answer: free, a call, or a value of a schema
    calls.py          reads a call, a character at a time, where its arguments are JSON
    tagged.py         the same for arguments with tags, and for Gemma's
    keywords.py       the same for arguments as Python has them
    parser.py         takes an answer apart as it comes
    defaults.py       what the server's options say
    conversation.py   all of it together: one request against one model

Words:

    delta         a part of an answer that has become certain, as OpenAI streams them
    marker        a text that may be a special token, such as <tool_call>
    plain         text in which llama.cpp looks for no special tokens
    manner        how one template wants messages with tool calls
    turn          one answer to a conversation, while it comes
    opener        a text that begins a call, wherever it comes in the content
    frame         a special token around content that says nothing to a client
    offer         the functions that an answer may call
"""
