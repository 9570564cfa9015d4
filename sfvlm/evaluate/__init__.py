"""How good an encoder is: zero-shot classification, retrieval, and what a host says with it beside the dense tower.

In: encoders and photos with labels, captions or a host. Out: rows of results, each with its control. It knows `util` to
`bootstrap`.
"""
