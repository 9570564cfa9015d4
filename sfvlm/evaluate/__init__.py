"""How good an encoder is: zero-shot classification, retrieval, and what a host says with it beside the dense tower.

In: encoders and photos with labels, captions or a host. Out: rows of results, each with its control:
`zeroshot` and `fidelity` measure, `encoding` is the pass over photos. It knows `util` to
`bootstrap`.
"""
