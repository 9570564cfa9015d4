"""What the command line does, one module a command; `sfvlm.cli` reads the flags, which are in `options`, and calls them.

In: a dataclass of flags. Out: what is said on the way, and files; whatever can be said before anything large is read is said
then. A command asks, prints and writes, and knows all rooms: work that somebody else could want lies in them.
"""
