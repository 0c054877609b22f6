"""The project's version, which /health tells, so that it can be seen which ones run side by side.

Programs of different versions work together: what one does not know in a header, a note or an answer of another one, it
ignores. Where that can't do, what is sent tells its own format (core/carriage.py).
"""

VERSION = "1.0.0"
