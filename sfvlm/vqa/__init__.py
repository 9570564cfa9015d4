"""Questions about photos, a host's answers, and benchmarks by the rules of their official evaluators.

In: a host, a benchmark's files or photos to make questions from. Out: answers files, scores with intervals, what a
tower retained. `ask` names the benchmarks, `sources` and `formats` bring the questions, `metrics` judges. It knows
`util` to `hosts`.
"""
