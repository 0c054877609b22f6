"""Grammars: a JSON schema, a pattern or GBNF goes in; which tokens may come next comes out."""
