"""Where a tower goes: what a LLaVA asks of a tower, and the swap.

In: a host's folder and a tower. Out: the same host with the tower in its place (`swap`, `folders`), or a refusal that
says why (`plan`); `host` asks a host and streams its answer, `reader` is its projector and language model as the
bootstrap uses them. `llava` is the same for the original package. It knows `util` to `alternatives`.
"""
